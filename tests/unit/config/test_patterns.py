"""Regular expressions of a recipe: they must compile, and end."""

import pytest

from bkray.config import UserError, parse_recipe


def refused(pattern):
    with pytest.raises(UserError) as error:
        parse_recipe({"name": "t", "corpus": {"kind": "text", "path": "x", "document_start": pattern}})
    return str(error.value)


@pytest.mark.parametrize(
    "pattern",
    [r"^(\w+\s?)*$", r"(\s*\w*)*:", r"^(\d+)+$", r"(x+x+)+y", r"^(é|éé)+$", r"^(foo|fo+)+bar", r".*.*.*.*x$"],
)
def test_a_pattern_that_would_not_end_is_refused_by_its_key(pattern, monkeypatch):
    monkeypatch.setattr("bkray.config.patterns._PROBE_S", 0.3)
    said = (
        f"corpus.document_start: {pattern!r} takes more than 0.3 s for lines of up to 1,000 letters: write it"
    )
    assert said in refused(pattern)


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
