"""What the tasks of the first stages do with shards. No cluster needed."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bkray.config import UserError, parse_recipe
from bkray.corpus import DOCUMENTS, list_shards, load_tokenizer, train_tokenizer
from bkray.runtime import prepare
from bkray.runtime.prepare import (
    _check_rejects,
    _check_splits,
    _gather_rejects,
    _PackParts,
    _ReadShards,
    _split_counts,
    augmentation_counts,
)


def test_shards_are_read_again_after_their_rejects_are_gathered(tmp_path):
    """As Ray does where it has lost a block while the stage goes on."""
    rows = [json.dumps({"text": f"text {number}"}) for number in range(20)]
    for name, broken in (("a", ["{", '{"title": "x"}']), ("b", []), ("c", ["{"])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join([*broken, *rows]))
    recipe = parse_recipe({"name": "t", "corpus": {"kind": "jsonl", "path": str(tmp_path)}})
    folder, target = tmp_path / ".rejects", tmp_path / "rejects.parquet"
    folder.mkdir()
    read = _ReadShards(list_shards(recipe.corpus), recipe, folder)
    numbers = pa.table({"shard": [0, 1, 2]})
    before = pa.concat_tables(read(numbers))
    assert _gather_rejects(folder, target) == {"malformed JSON": 2, "no text field": 1}
    assert pa.concat_tables(read(numbers)) == before
    gathered = pq.read_table(target)
    assert gathered["source"].to_pylist() == ["a.jsonl", "a.jsonl", "c.jsonl"]
    assert gathered["ordinal"].to_pylist() == [0, 1, 0]


def test_of_a_file_without_a_good_row_some_rejects_are_held(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_REJECTS_HELD", 2000)
    (tmp_path / "a.jsonl").write_text("no JSON\n" * 30_500)
    recipe = parse_recipe({"name": "t", "corpus": {"kind": "jsonl", "path": str(tmp_path / "a.jsonl")}})
    (tmp_path / ".rejects").mkdir()
    read = _ReadShards(list_shards(recipe.corpus), recipe, tmp_path / ".rejects")
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in read(pa.table({"shard": [0]}))]
    assert len(held) > 30
    assert max(held) < 1e6, "110 bytes each"
    target = tmp_path / "rejects.parquet"
    assert sum(_gather_rejects(tmp_path / ".rejects", target).values()) == 30_500
    assert pq.read_table(target)["ordinal"].to_pylist() == list(range(30_500))


def test_a_worker_loads_one_tokenizer_for_all_parts_that_it_packs(tmp_path, monkeypatch):
    """What a tokenizer has cached is not freed with it: gigabytes over hundreds of parts."""
    texts, loaded = [f"some words and the number {number}" for number in range(40)], []
    train_tokenizer(texts, 300).save(str(tmp_path / "tokenizer.json"))
    names = ("source", "split", "parent_id", "augmentation")
    for number in range(2):
        rows = [
            {"doc_id": doc_id, "text": text, **dict.fromkeys(names), "source": "t", "split": "train"}
            for doc_id, text in enumerate(texts[number::2], 100 * number)
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=DOCUMENTS), tmp_path / f"{number}.parquet")
    monkeypatch.setattr(prepare, "load_tokenizer", lambda path: loaded.append(path) or load_tokenizer(path))
    for number in range(2):
        task = _PackParts(tmp_path / "tokenizer.json", 16)  # another object for every task
        (packed,) = task(pa.table({"part": [str(tmp_path / f"{number}.parquet")]}))
        assert packed.num_rows > 1
    assert loaded == [tmp_path / "tokenizer.json"]


TEXT = {"kind": "text", "path": "x"}
LINE = "set corpus.document to line, or "
LINE_OF_MIXED = "set document in corpus.sources to line, or "


@pytest.mark.parametrize(
    ("corpus", "mend"),
    [
        (TEXT, LINE),
        ({"kind": "mixed", "sources": [TEXT, {"kind": "docstrings"}]}, LINE_OF_MIXED),
        ({**TEXT, "document": "line"}, ""),
        ({**TEXT, "document_start": "^="}, ""),
        ({"kind": "docstrings"}, ""),
    ],
)
def test_text_without_blank_lines_is_told_how_it_falls_into_documents(corpus, mend, tmp_path):
    recipe = parse_recipe({"name": "t", "corpus": corpus})
    rejects = [{"source": "a.txt", "ordinal": 0, "reason": "too long", "detail": "2000000 characters: …"}]
    pq.write_table(pa.Table.from_pylist(rejects), tmp_path / "rejects.parquet")
    with pytest.raises(UserError) as error:
        _check_rejects(Counter({"too long": 1}), 0, recipe, tmp_path / "rejects.parquet")
    assert f"(2000000 characters: …): {mend}mend the rows or raise cleaning.max_rejects" in str(error.value)
    documents = pa.table({"split": ["train"], "text": ["a text of six hundred kilobytes " * 20_000]})
    pq.write_table(documents, tmp_path / "part-0.parquet")
    with pytest.raises(UserError) as error:
        _check_splits([tmp_path / "part-0.parquet"], recipe)
    found = "the validation split is too small for one window of 256 tokens, it has 0 documents of 0 bytes"
    assert f"{found} in all: {mend}set window lower, or bring more text" in str(error.value)


@pytest.mark.parametrize(
    ("corpus", "mend"),
    [
        ({"kind": "docstrings", "validation": 0.01}, "set corpus.validation higher than 0.01, or "),
        (
            {"kind": "mixed", "sources": [{**TEXT, "document": "line"}, {"kind": "docstrings"}]},
            "set validation in corpus.sources higher, or ",
        ),
    ],
)
def test_a_drawn_split_without_text_is_told_to_draw_more(corpus, mend, tmp_path):
    recipe = parse_recipe({"name": "t", "corpus": corpus})
    documents = pa.table({"split": ["train"], "text": ["a text of six hundred kilobytes " * 20_000]})
    pq.write_table(documents, tmp_path / "part-0.parquet")
    with pytest.raises(UserError) as error:
        _check_splits([tmp_path / "part-0.parquet"], recipe, drawn={"validation", "test"})
    assert f"0 bytes in all: {mend}set window lower" in str(error.value)
    with pytest.raises(UserError, match="0 bytes in all: set window lower"):
        _check_splits([tmp_path / "part-0.parquet"], recipe, drawn={"test"})


def test_a_split_that_lost_its_text_is_told_to_what(tmp_path):
    near = parse_recipe({"name": "t", "corpus": {"kind": "docstrings"}, "cleaning": {"near": {}}})
    documents = pa.table({"split": ["train"], "text": ["six hundred kilobytes " * 30_000]})
    pq.write_table(documents, tmp_path / "part-0.parquet")
    with pytest.raises(
        UserError, match=r"0 bytes in all after 12 duplicates were removed from all splits: set"
    ):
        _check_splits([tmp_path / "part-0.parquet"], near, 12)
    pq.write_table(pa.table({"split": ["validation", "test"]}), tmp_path / "part-0.parquet")
    with pytest.raises(
        UserError, match=r"the train split is too small .*: let cleaning \(near\) remove less, set"
    ):
        _split_counts(tmp_path, 5, near)


def test_no_rejects_are_an_empty_table(tmp_path):
    (tmp_path / ".rejects").mkdir()
    assert not _gather_rejects(tmp_path / ".rejects", tmp_path / "rejects.parquet")
    assert pq.read_table(tmp_path / "rejects.parquet").num_rows == 0


def test_a_kind_that_draws_no_document_is_counted_all_the_same():
    outcome = {"augmentation": "swap", "dropped": None, "unchanged": False, "count_all": 3}
    deletion, swap = augmentation_counts(["swap", "deletion"], [outcome])
    assert (deletion["kind"], deletion["originals"], deletion["made"]) == ("deletion", 0, 0)
    assert (swap["kind"], swap["originals"], swap["made"]) == ("swap", 3, 3)
