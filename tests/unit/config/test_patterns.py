"""Regular expressions of a recipe: they must compile, and end."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from bkray.config import UserError, parse_recipe
from bkray.config.patterns import limited


def refused(pattern):
    with pytest.raises(UserError) as error:
        parse_recipe({"name": "t", "corpus": {"kind": "text", "path": "x", "document_start": pattern}})
    return str(error.value)


@pytest.mark.parametrize(
    "pattern",
    [
        r"^(\w+\s?)*$",
        r"(\s*\w*)*:",
        r"^(\d+)+$",
        r"(x+x+)+y",
        r"^(é|éé)+$",
        r"^(foo|fo+)+bar",
        r".*.*.*.*x$",
        r"^(\W+)+$",
        r"^([\u0400-\u04FF]+\s?)+$",
        r"^([\u0e01-\u0e3a]+\s?)+$",
        r"^([\u4e00-\u9fff]+，?)+。$",
        r"^((?:[^\x00-\x7f])+)+$",
    ],
)
def test_a_pattern_that_would_not_end_is_refused_by_its_key(pattern, monkeypatch):
    monkeypatch.setattr("bkray.config.patterns._PROBE_S", 0.3)
    said = (
        f"corpus.document_start: {pattern!r} takes more than 0.3 s for lines of up to 1,000 letters: write it"
    )
    assert said in refused(pattern)


def test_what_a_thread_beside_the_main_one_calls_has_no_limit():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(limited, len, 0.1).result() is len


def test_what_is_no_pattern_is_refused_by_its_key():
    assert "corpus.document_start: '(' is not a regular expression" in refused("(")
    assert "corpus.document_start: '\\x00(' is not a regular expression" in refused("\0(")


@pytest.mark.parametrize(
    "pattern",
    [
        r"^ = [^=].* = $",
        r"^\d+\. \w+",
        "^=",
        r"^(#+|\*) .*",
        "\0",
        r"^(Chapter|CHAPTER) [IVX]+",
        r".*foo.*bar",
    ],
)
def test_ordinary_ones_pass(pattern):
    recipe = parse_recipe({"name": "t", "corpus": {"kind": "text", "path": "x", "document_start": pattern}})
    assert recipe.corpus.document_start == pattern
