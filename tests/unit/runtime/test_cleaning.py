"""What the tasks of the cleaning stages do with a sample and with blocks. No cluster needed."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bkray.config import UserError, parse_recipe
from bkray.config.corpus import NearDuplicates
from bkray.corpus import list_shards
from bkray.corpus.cleaning import count, count_unigrams, near
from bkray.runtime.cleaning import (
    REMOVED,
    _fit,
    _group,
    _read_sample,
    _Sketch,
    _some,
    _twins,
    _write_removed,
    without_counts,
)


def recipe_and_shards(path, **options):
    sample = {"kind": "jsonl", "path": str(path), **options}
    cleaning = {"max_chars": 50, "quality": {"sample": sample}}
    recipe = parse_recipe({"name": "t", "corpus": {"kind": "docstrings"}, "cleaning": cleaning})
    return recipe, tuple(list_shards(recipe.cleaning.quality.sample))


def read(path, **options):
    return _read_sample(*recipe_and_shards(path, **options), path)


def write(folder, split, lines):
    (folder / f"{split}.jsonl").write_text("\n".join(lines))


def rows(count, start=0):
    return [json.dumps({"text": f"text {number}"}) for number in range(start, start + count)]


def test_a_sample_is_taken_in_order_and_bad_rows_are_kept(tmp_path):
    write(tmp_path, "train", [*rows(60), "{broken"])
    write(tmp_path, "validation", [*rows(60, 60), json.dumps({"text": "x" * 51})])
    assert read(tmp_path) == [f"text {number}" for number in range(120)]
    rejects = pq.read_table(tmp_path / "rejects.parquet").to_pylist()
    assert [(row["source"], row["ordinal"], row["reason"]) for row in rejects] == [
        ("train.jsonl", 60, "malformed JSON"),
        ("validation.jsonl", 60, "too long"),
    ]


def test_nothing_is_learned_from_the_test_split_of_a_sample(tmp_path):
    for split, start in {"train": 0, "validation": 60, "test": 120}.items():
        write(tmp_path, split, [*rows(60, start), "{broken"])
    counts = pa.table({"unigrams": [count_unigrams([]).tolist()]})
    quality, details = _fit._function(*recipe_and_shards(tmp_path), tmp_path, 1.0, counts)
    learned = [f"text {number}" for number in range(120)]
    assert (quality.sample.bigrams_B == count(learned).bigrams_B).all()
    assert (details["sample"], details["test_split_left_out"]) == (120, 1)
    rejects = pq.read_table(tmp_path / "rejects.parquet")
    assert rejects["source"].to_pylist() == ["train.jsonl", "validation.jsonl"]


@pytest.mark.parametrize("name", ["validation", "sample", "testimonials"])
def test_a_sample_of_one_file_is_taken_whole(tmp_path, name):
    write(tmp_path, name, rows(120))
    counts = pa.table({"unigrams": [count_unigrams([]).tolist()]})
    _, details = _fit._function(*recipe_and_shards(tmp_path / f"{name}.jsonl"), tmp_path, 1.0, counts)
    assert (details["sample"], details["test_split_left_out"]) == (120, 0)


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (rows(99), {}, "99 documents are too few to set a threshold by: bring at least 100"),
        (
            [*rows(200), *["{"] * 40],
            {},
            "40 of 240 documents were rejected, more than cleaning.max_rejects 0.1; the first is document",
        ),
        (rows(200), {"text_field": "txt"}, "no text_field 'txt'; there are text; did you mean"),
    ],
)
def test_a_sample_that_cannot_be_used(tmp_path, lines, options, message):
    write(tmp_path, "train", lines)
    with pytest.raises(UserError, match=f"cleaning.quality.sample: .*{message}"):
        read(tmp_path, **options)


def test_the_words_of_a_large_pool_are_those_of_its_first_training_documents(tmp_path, monkeypatch):
    for number, splits in enumerate((["test"] * 3, ["test", "train"], ["train"] * 4, ["train"] * 5)):
        pq.write_table(pa.table({"split": splits}), tmp_path / f"part-{number:05d}.parquet")
    parts = sorted(tmp_path.glob("part-*"))
    assert _some(parts) == (parts[1:], 1.0)
    monkeypatch.setattr("bkray.runtime.cleaning._UNIGRAM_PARTS", 2)
    assert _some(parts) == (parts[1:3], 2.0)


def test_tasks_that_gather_blocks(tmp_path):
    write(tmp_path, "train", rows(120))
    counts = [count_unigrams([text]) for text in ("text one", "text two")]
    blocks = [pa.table({"unigrams": [unigrams.tolist()]}) for unigrams in counts]
    quality, _ = _fit._function(*recipe_and_shards(tmp_path), tmp_path, 2.5, *blocks)
    assert (quality.pool_U == 2.5 * sum(counts) + quality.sample.unigrams_U).all()

    documents = pa.table({"doc_id": [7, 3, 5], "text": ["a b c d", "a b c d", "e f g h"]})
    sketched = _Sketch(NearDuplicates())(documents)
    found, number = _group._function(0.6, sketched.slice(0, 1), sketched.slice(1))
    assert found["doc_id"].to_pylist() == [3, 7]
    assert (number, len(np.unique(found["group"]))) == (2, 1)

    gone = pa.table([[9, 4], ["a", "b"], ["order"] * 2, [0.5, 0.6], pa.nulls(2, pa.int64())], schema=REMOVED)
    ids = _write_removed._function(str(tmp_path / "removed.parquet"), gone.slice(0, 1), gone.slice(1))
    assert ids.tolist() == pq.read_table(tmp_path / "removed.parquet")["doc_id"].to_pylist() == [4, 9]


def test_the_documents_of_a_bucket_that_were_not_compared_with_all_are_counted(monkeypatch):
    monkeypatch.setattr(near, "MOST_A_KEY", 1)
    texts = [
        f"{' '.join(map(str, range(40)))} {' '.join(f'{page}x{n}' for n in range(20))}" for page in "abcd"
    ]
    bucket = pa.table(
        {
            "doc_id": [*range(10, 14), 20, 21],
            "source": ["s"] * 6,
            "text": [*texts, "another one", "another one"],
            "split": ["train"] * 6,
            "group": [1] * 4 + [7] * 2,
        }
    )
    found = _twins(NearDuplicates(), bucket)
    assert found["crowded"].to_pylist() == [0, 2]
    gone = without_counts(found).cast(REMOVED).to_pylist()
    assert [(row["doc_id"], row["twin_id"]) for row in gone] == [(21, 20)]
