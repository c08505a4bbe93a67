"""Which documents of a target count: none that any of its runs holds out. No cluster needed."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bkray.config import UserError, parse_recipe
from bkray.corpus import read_shard
from bkray.corpus.cleaning import count_unigrams
from bkray.runtime.nearest import _count, gone_of
from bkray.runtime.plan import Named, drawn_seeds
from bkray.runtime.reading import Reading


def target(folder, documents=80, **shares):
    path = folder / "target.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(documents)))
    return {"kind": "jsonl", "path": str(path), "validation": 0.2, "test": 0.2, **shares}


def recipe_and_shards(to, seeds=()):
    leakage = {"held_out_of": {"target": to}, "seeds": list(seeds)}
    cleaning = {"nearest": {"to": to, "keep": 0.5}, "leakage": leakage}
    recipe = parse_recipe({"name": "t", "corpus": {"kind": "docstrings"}, "cleaning": cleaning})
    return recipe, Named.by(recipe).target


def read_target(recipe, shards):
    reading = Reading("cleaning.nearest.to", recipe.cleaning.nearest.to, shards, recipe.cleaning)
    return [row for table in reading.trained_on(drawn_seeds(recipe)) for row in table.to_pylist()]


def held_out_rows(recipe, shards, seed):
    for shard in shards:
        for documents, _ in read_shard(shard, recipe.cleaning.nearest.to, recipe.cleaning, seed):
            yield from (row for row in documents.to_pylist() if row["split"] != "train")


def held_out(recipe, shards, seed):
    return {row["doc_id"] for row in held_out_rows(recipe, shards, seed)}


def test_no_document_that_a_run_with_any_of_the_seeds_holds_out_counts(tmp_path):
    recipe, shards = recipe_and_shards(target(tmp_path), seeds=[0, 1, 2])
    read = {row["doc_id"] for row in read_target(recipe, shards)}
    for seed in (0, 1, 2):
        assert not read & held_out(recipe, shards, seed)
    assert len(read | set.union(*(held_out(recipe, shards, seed) for seed in (0, 1, 2)))) == 80
    assert 5 < len(read) < 40, "0.6 cubed of 80"


def test_what_a_source_holds_out_by_itself_does_not_count_in_a_mixture_either(tmp_path):
    sources = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        sources.append(target(tmp_path / name))
    mixed = {"kind": "mixed", "sources": sources}
    recipe, shards = recipe_and_shards(mixed, seeds=[0, 1])
    read = {(row["source"], row["text"]) for row in read_target(recipe, shards)}
    assert 10 < len(read) < 60, "0.6 to the fourth of 160"
    for member, source in enumerate(sources):
        alone, own = recipe_and_shards(source)
        for seed in (0, 1):
            for row in held_out_rows(alone, own, seed):
                assert (f"{member}/{row['source']}", row["text"]) not in read
    for seed in (0, 1):
        assert not {row["doc_id"] for row in read_target(recipe, shards)} & held_out(recipe, shards, seed)


def test_a_target_all_of_which_some_run_holds_out_is_refused(tmp_path):
    recipe, shards = recipe_and_shards(target(tmp_path, documents=1), seeds=range(40))
    with pytest.raises(UserError, match=r"cleaning\.nearest\.to: no document of it is for training: set its"):
        read_target(recipe, shards)


def test_the_counts_are_those_of_the_training_documents(tmp_path):
    recipe, shards = recipe_and_shards(target(tmp_path))
    unigrams = count_unigrams(["a pool"])
    pool = pa.table({"unigrams": pa.FixedSizeListArray.from_arrays(pa.array(unigrams), len(unigrams))})
    (own, both), details = _count._function(recipe, shards, tmp_path, pool)
    texts = [row["text"] for row in read_target(recipe, shards)]
    assert (own == count_unigrams(texts)).all()
    assert (both == own + unigrams).all()
    assert details == {"target": len(texts)}


def test_what_is_rejected_of_the_target_is_kept_and_too_much_is_refused(tmp_path):
    to = target(tmp_path)
    with open(to["path"], "a") as file:
        file.write("{broken\n" * 3)
    recipe, shards = recipe_and_shards(to, seeds=[0, 1])
    _count._function(recipe, shards, tmp_path)
    rejects = pq.read_table(tmp_path / "rejects.parquet").to_pylist()
    assert [(row["source"], row["ordinal"]) for row in rejects] == [("target.jsonl", n) for n in (80, 81, 82)]
    with open(to["path"], "a") as file:
        file.write("{broken\n" * 30)
    with pytest.raises(
        UserError, match=r"cleaning\.nearest\.to: 33 of 113 documents were rejected, more than"
    ):
        _count._function(recipe, shards, tmp_path)


def test_the_share_that_stays_is_rounded(tmp_path):
    recipe, _ = recipe_and_shards(target(tmp_path))
    assert [gone_of(recipe.cleaning.nearest, rows) for rows in (3, 7, 1000)] == [1, 3, 500]


@pytest.mark.parametrize(
    ("keep", "rows", "message"),
    [
        (0.001, 120, "keep 0.001 of 120 training documents is none, so no text is left: raise it"),
        (0.9999, 1200, "keep 0.9999 of 1,200 training documents is all, so none goes: lower it"),
        (0.6, 1, "keep 0.6 of 1 training documents is all, so none goes: lower it"),
        (0.5, 1, "keep 0.5 of 1 training documents is none"),
    ],
)
def test_a_share_that_rounds_to_no_document_or_to_all_is_refused(tmp_path, keep, rows, message):
    recipe, _ = recipe_and_shards(target(tmp_path))
    settings = recipe.cleaning.nearest.model_copy(update={"keep": keep})
    with pytest.raises(UserError, match=rf"cleaning\.nearest\.{message}.*or bring more text"):
        gone_of(settings, rows)


def test_a_target_that_cannot_be_used_is_named(tmp_path):
    recipe, shards = recipe_and_shards(target(tmp_path, text_field="words"))
    with pytest.raises(UserError, match=r"cleaning\.nearest\.to: .*text_field 'words'"):
        _count._function(recipe, shards, tmp_path)
    missing = {"kind": "text", "path": str(tmp_path / "none")}
    wanted = {
        "name": "t",
        "corpus": {"kind": "docstrings"},
        "cleaning": {"nearest": {"to": missing, "keep": 0.5}},
    }
    with pytest.raises(UserError, match=r"cleaning\.nearest\.to: .*no such file"):
        Named.by(parse_recipe(wanted))
