"""Which documents of a target count: none that any of its runs holds out. No cluster needed."""

import json

import pyarrow as pa
import pytest

from bkray.config import UserError, parse_recipe
from bkray.corpus import read_shard
from bkray.corpus.cleaning import count_unigrams
from bkray.runtime.nearest import _count, _trained_on
from bkray.runtime.plan import Named


def target(folder, documents=80, **shares):
    path = folder / "target.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(documents)))
    return {"kind": "jsonl", "path": str(path), "validation": 0.2, "test": 0.2, **shares}


def recipe_and_shards(to, seeds=()):
    leakage = {"held_out_of": {"target": to}, "seeds": list(seeds)}
    cleaning = {"nearest": {"to": to, "keep": 0.5}, "leakage": leakage}
    recipe = parse_recipe({"name": "t", "corpus": {"kind": "docstrings"}, "cleaning": cleaning})
    return recipe, Named.by(recipe.cleaning).target


def held_out(recipe, shards, seed):
    found = set()
    for shard in shards:
        for documents, _ in read_shard(shard, recipe.cleaning.nearest.to, recipe.cleaning, seed):
            found |= {row["doc_id"] for row in documents.to_pylist() if row["split"] != "train"}
    return found


def test_no_document_that_a_run_with_any_of_the_seeds_holds_out_counts(tmp_path):
    recipe, shards = recipe_and_shards(target(tmp_path), seeds=[0, 1, 2])
    read = {row["doc_id"] for table in _trained_on(recipe, shards) for row in table.to_pylist()}
    for seed in (0, 1, 2):
        assert not read & held_out(recipe, shards, seed)
    assert len(read | set.union(*(held_out(recipe, shards, seed) for seed in (0, 1, 2)))) == 80
    assert 5 < len(read) < 40, "0.6 cubed of 80"


def test_the_counts_are_those_of_the_training_documents(tmp_path):
    recipe, shards = recipe_and_shards(target(tmp_path))
    unigrams = count_unigrams(["a pool"])
    pool = pa.table({"unigrams": pa.FixedSizeListArray.from_arrays(pa.array(unigrams), len(unigrams))})
    (own, both), details = _count._function(recipe, shards, pool)
    texts = [row["text"] for table in _trained_on(recipe, shards) for row in table.to_pylist()]
    assert (own == count_unigrams(texts)).all()
    assert (both == own + unigrams).all()
    assert details == {"target": len(texts)}


def test_a_target_that_cannot_be_used_is_named(tmp_path):
    recipe, shards = recipe_and_shards(target(tmp_path, text_field="words"))
    with pytest.raises(UserError, match=r"cleaning\.nearest\.to: .*text_field 'words'"):
        _count._function(recipe, shards)
    missing = {"kind": "text", "path": str(tmp_path / "none")}
    wanted = {
        "name": "t",
        "corpus": {"kind": "docstrings"},
        "cleaning": {"nearest": {"to": missing, "keep": 0.5}},
    }
    with pytest.raises(UserError, match=r"cleaning\.nearest\.to: .*no such file"):
        Named.by(parse_recipe(wanted).cleaning)
