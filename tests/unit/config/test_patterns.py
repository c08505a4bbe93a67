"""Regular expressions of a recipe: they must compile, and end."""

import pytest

from bkray.config import UserError, parse_recipe


def refused(pattern):
    with pytest.raises(UserError) as error:
        parse_recipe({"name": "t", "corpus": {"kind": "text", "path": "x", "document_start": pattern}})
    return str(error.value)


@pytest.mark.parametrize("pattern", [r"^(\w+\s?)*$", r"(\s*\w*)*:", r"^(\d+)+$"])
def test_a_pattern_that_would_not_end_is_refused_by_its_key(pattern, monkeypatch):
    monkeypatch.setattr("bkray.config.patterns._PROBE_S", 1)
    said = (
        f"corpus.document_start: {pattern!r} takes more than 1 s for a line of 60 letters: write it without"
    )
    assert said in refused(pattern)


def test_what_is_no_pattern_is_refused_by_its_key():
    assert "corpus.document_start: '(' is not a regular expression" in refused("(")


@pytest.mark.parametrize("pattern", [r"^ = [^=].* = $", r"^\d+\. \w+", "^=", r"^(#+|\*) .*"])
def test_ordinary_ones_pass(pattern):
    recipe = parse_recipe({"name": "t", "corpus": {"kind": "text", "path": "x", "document_start": pattern}})
    assert recipe.corpus.document_start == pattern
