"""Several sources as one corpus: each keeps its own splits, and ids do not collide."""

import json

import pytest

from bkray.config import UserError, parse_recipe
from bkray.config.corpus import Cleaning
from bkray.corpus import list_shards, read_shard
from bkray.runtime.plan import make_plan


def write(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return {"kind": "jsonl", "path": str(path)}


@pytest.fixture
def recipe(tmp_path):
    """Two sources with files of one name; the second brings its own splits."""
    first = write(tmp_path / "one" / "train.jsonl", [f"one {number}" for number in range(200)])
    write(tmp_path / "two" / "train.jsonl", ["two 0", "two 1"])
    for split in ("validation", "test"):
        write(tmp_path / "two" / f"{split}.jsonl", [f"two {split}"])
    second = {"kind": "jsonl", "path": str(tmp_path / "two")}
    corpus = {"kind": "mixed", "sources": [{**first, "test": 0.2}, second]}

    def make(*changes):
        return parse_recipe({"name": "t", "corpus": {**corpus, "sources": [*corpus["sources"], *changes]}})

    return make


def read(corpus):
    tables = [found for shard in list_shards(corpus) for found in read_shard(shard, corpus, Cleaning(), 0)]
    return [row for documents, _ in tables for row in documents.to_pylist()]


def test_every_source_keeps_its_splits_and_ids_are_their_own(recipe):
    corpus = recipe().corpus
    rows = read(corpus)
    assert len({row["doc_id"] for row in rows}) == len(rows) == 204
    assert {row["source"] for row in rows if row["text"].startswith("one")} == {"0/train.jsonl"}
    two = {row["text"]: (row["source"], row["split"]) for row in rows if row["text"].startswith("two")}
    assert two == {
        "two 0": ("1/train.jsonl", "train"),
        "two 1": ("1/train.jsonl", "train"),
        "two validation": ("1/validation.jsonl", "validation"),
        "two test": ("1/test.jsonl", "test"),
    }
    drawn = [row["split"] for row in rows if row["text"].startswith("one")]
    assert 20 <= drawn.count("test") <= 60
    assert 1 <= drawn.count("validation") <= 25


def test_what_is_wrong_with_a_source_is_said_with_its_place(recipe, tmp_path):
    missing = {"kind": "text", "path": str(tmp_path / "none.txt")}
    with pytest.raises(UserError, match=r"corpus\.sources\[2\]: corpus\.path .*no such file"):
        list_shards(recipe(missing).corpus)
    other = {**write(tmp_path / "three.jsonl", ["three"]), "text_field": "txt"}
    with pytest.raises(UserError, match=r"corpus\.sources\[2\]: three\.jsonl: no text_field 'txt'"):
        read(recipe(other).corpus)
    with pytest.raises(UserError, match=r"corpus\.sources\.2\.kind: 'txt' is unknown; did you mean text"):
        recipe({"kind": "txt"})
    with pytest.raises(UserError, match=r"corpus\.sources\.2\.pth: unknown key; did you mean path"):
        recipe({"kind": "text", "path": "a", "pth": "b"})
    with pytest.raises(UserError, match="leave less than half for training"):
        recipe({"kind": "text", "path": "a", "validation": 0.4, "test": 0.2})
    one = {"name": "t", "corpus": {"kind": "mixed", "sources": [{"kind": "docstrings"}]}}
    with pytest.raises(UserError, match=r"corpus\.sources.*at least 2"):
        parse_recipe(one)


def test_the_documents_depend_on_every_source_and_not_on_where_it_lies(recipe, tmp_path):
    def key(recipe):
        return make_plan(recipe, list_shards(recipe.corpus), tmp_path / "run").stages["documents"].key

    plain = key(recipe())
    (tmp_path / "two").rename(tmp_path / "moved")
    elsewhere = recipe()
    first, second = elsewhere.corpus.sources
    moved = second.model_copy(update={"path": str(tmp_path / "moved")})
    corpus = elsewhere.corpus.model_copy(update={"sources": (first, moved)})
    assert key(elsewhere.model_copy(update={"corpus": corpus})) == plain
    swapped = elsewhere.corpus.model_copy(update={"sources": (moved, first)})
    assert key(elsewhere.model_copy(update={"corpus": swapped})) != plain
    write(tmp_path / "moved" / "test.jsonl", ["another text"])
    assert key(elsewhere.model_copy(update={"corpus": corpus})) != plain
