"""Which documents of another corpus are held out, and what the stage's key depends on. No cluster needed."""

import json

import pyarrow.parquet as pq
import pytest

from bkray.config import UserError, parse_recipe
from bkray.config.corpus import Cleaning, NearDuplicates
from bkray.corpus import list_shards, read_shard
from bkray.runtime.leakage import _index, _reading, held_out_documents
from bkray.runtime.plan import Named, make_plan


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def recipe(corpus, seed=0, **leakage):
    leakage = {"held_out_of": {"target": corpus}} | leakage
    values = {"corpus": {"kind": "docstrings"}, "cleaning": {"leakage": leakage, "max_chars": 20}}
    return parse_recipe({"name": "t", "seed": seed, **values})


def held_out(recipe):
    shards = Named.by(recipe).held_out
    reading = _reading(recipe, "target", shards["target"])
    return held_out_documents("target", reading, recipe)["text"].to_pylist()


def drawn(corpus, seed):
    """What a run on the corpus itself holds out."""
    (shard,) = list_shards(corpus)
    rows = [
        row for documents, _ in read_shard(shard, corpus, Cleaning(), seed) for row in documents.to_pylist()
    ]
    return [row["text"] for row in rows if row["split"] != "train"]


def test_it_is_what_a_run_on_that_corpus_holds_out_with_any_of_the_seeds(tmp_path):
    path = tmp_path / "all.jsonl"
    write(path, [f"text number {number} that is long" for number in range(200)])
    named = {"kind": "jsonl", "path": str(path), "validation": 0.2, "test": 0.1}
    one, own = recipe(named, seeds=[4]), recipe(named, seed=3)
    corpus = one.cleaning.leakage.held_out_of["target"]
    assert held_out(own) == drawn(corpus, 3)
    assert held_out(one) == drawn(corpus, 4) != drawn(corpus, 3)
    assert 30 <= len(held_out(one)) <= 90
    both = held_out(recipe(named, seeds=[3, 4]))
    assert set(both) == {*drawn(corpus, 3), *drawn(corpus, 4)}
    assert len(both) == len(set(both))


def test_a_corpus_with_splits_of_its_own_has_no_seed(tmp_path):
    for split in ("train", "validation", "test"):
        write(tmp_path / f"{split}.jsonl", [f"{split} {number}" for number in range(3)])
    named = {"kind": "jsonl", "path": str(tmp_path)}
    expected = {f"{split} {number}" for split in ("validation", "test") for number in range(3)}
    assert set(held_out(recipe(named))) == expected
    with pytest.raises(UserError, match=r"cleaning\.leakage\.seeds \[1\] has no effect: .*: remove it"):
        held_out(recipe(named, seeds=[1]))


def test_a_corpus_that_is_not_there_or_holds_nothing_out_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cleaning\.leakage\.held_out_of\.target: .*no such file"):
        make_plan(recipe({"kind": "text", "path": str(tmp_path / "no.txt")}), [], tmp_path)
    write(tmp_path / "one.jsonl", ["one"])
    with pytest.raises(UserError, match=r"held_out_of\.target: no document is held out"):
        held_out(recipe({"kind": "jsonl", "path": str(tmp_path / "one.jsonl"), "test": 0.001}))


def test_near_copies_leak_whether_or_not_near_is_on(tmp_path):
    """A copy of which every twelfth word is another shares no thirteen words with the original."""
    words = [f"word{number}" for number in range(60)]
    copy = " ".join("other" if place % 12 == 11 else word for place, word in enumerate(words))
    write(tmp_path / "train.jsonl", ["of its own"])
    write(tmp_path / "test.jsonl", [" ".join(words)])
    one = recipe({"kind": "jsonl", "path": str(tmp_path)})
    strict = one.cleaning.model_copy(update={"near": NearDuplicates(threshold=0.9)})
    kinds = []
    for cleaning in (one.cleaning, strict):
        asked = one.model_copy(update={"cleaning": cleaning})
        (held_out, _), _ = _index._function(asked, Named.by(asked).held_out, tmp_path)
        kinds.append([leak and leak.kind for leak in held_out.leaks([copy, "something else"])[0]])
    assert kinds == [["near duplicate", None], [None, None]]


def test_what_is_rejected_of_every_corpus_is_kept_once_whatever_the_seeds(tmp_path):
    """It is not too much for this run: those on the corpora say so."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "all.jsonl", [f"{name} {number}" for number in range(60)])
    with open(tmp_path / "two" / "all.jsonl", "a") as file:
        file.write("{broken\n" + json.dumps({"title": "no text"}) + "\n")
    corpora = {name: {"kind": "jsonl", "path": str(tmp_path / name)} for name in ("two", "one")}
    asked = recipe(None, held_out_of=corpora, seeds=[0, 1])
    asked = asked.model_copy(update={"cleaning": asked.cleaning.model_copy(update={"max_rejects": 0.0})})
    _, counts = _index._function(asked, Named.by(asked).held_out, tmp_path)
    assert list(counts) == ["one", "two"]
    rejects = pq.read_table(tmp_path / "rejects.parquet").to_pylist()
    assert [(row["source"], row["ordinal"], row["reason"]) for row in rejects] == [
        ("two/all.jsonl", 60, "malformed JSON"),
        ("two/all.jsonl", 61, "no text field"),
    ]


def test_a_name_for_no_corpus_is_refused():
    values = {"name": "t", "corpus": {"kind": "docstrings"}, "cleaning": {"leakage": {"held_out_of": {}}}}
    with pytest.raises(UserError, match=r"cleaning\.leakage\.held_out_of"):
        parse_recipe(values)


def test_the_stage_depends_on_the_text_that_is_held_out_and_the_documents_do_not(tmp_path):
    path = tmp_path / "all.jsonl"
    write(path, ["a", "b"])
    named = {"kind": "jsonl", "path": str(path)}

    def keys(**leakage):
        stages = make_plan(recipe(named, **leakage), [], tmp_path).stages
        assert list(stages)[:3] == ["documents", "decontaminated", "tokenizer"]
        assert list(stages["tokenizer"].inputs) == ["decontaminated"]
        return stages["documents"].key, stages["decontaminated"].key

    plain = keys()
    assert keys(seeds=[0]) == plain  # this recipe's seed, spelt out
    others = [keys(overlap=8), keys(overlap=None), keys(seeds=[1])]
    write(path, ["a", "b", "c"])
    others.append(keys())
    assert {documents for documents, _ in others} == {plain[0]}
    assert len({plain[1], *(found for _, found in others)}) == 5
