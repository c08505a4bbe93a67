"""The trusted sample as it is read: what is wrong with it is said under its own name. No cluster needed."""

import json

import pytest

from bkray.config import UserError, parse_recipe
from bkray.corpus import list_shards
from bkray.runtime.cleaning import _read_sample


def read(path, **options):
    sample = {"kind": "jsonl", "path": str(path), **options}
    cleaning = {"max_chars": 50, "quality": {"sample": sample}}
    recipe = parse_recipe({"name": "t", "corpus": {"kind": "docstrings"}, "cleaning": cleaning})
    return _read_sample(recipe, tuple(list_shards(recipe.cleaning.quality.sample)))


def write(folder, split, lines):
    (folder / f"{split}.jsonl").write_text("\n".join(lines))


def rows(count, start=0):
    return [json.dumps({"text": f"text {number}"}) for number in range(start, start + count)]


def test_every_split_is_taken_in_order_and_bad_rows_are_counted(tmp_path):
    write(tmp_path, "train", [*rows(60), "{broken"])
    write(tmp_path, "test", [*rows(60, 60), json.dumps({"text": "x" * 51})])
    texts, rejects = read(tmp_path)
    assert texts == [f"text {number}" for number in (*range(60, 120), *range(60))]
    assert rejects == 2


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (rows(99), {}, "99 documents are too few to set a threshold by: bring at least 100"),
        (
            [*rows(200), *["{"] * 40],
            {},
            "40 of 240 documents were rejected, more than cleaning.max_rejects 0.1",
        ),
        (rows(200), {"text_field": "txt"}, "no corpus.text_field 'txt'; there are text; did you mean"),
    ],
)
def test_a_sample_that_cannot_be_used(tmp_path, lines, options, message):
    write(tmp_path, "train", lines)
    with pytest.raises(UserError, match=f"cleaning.quality.sample: .*{message}"):
        read(tmp_path, **options)
