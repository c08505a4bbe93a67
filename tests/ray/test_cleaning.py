"""Leakage, near-duplicates, quality, nearness to a target: as stages, whatever the blocks and splits."""

import json
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from bkray.config import parse_recipe
from bkray.reporting.progress import Progress
from bkray.runtime import cleaning, leakage, nearest, prepare, stages
from bkray.runtime.exits import find_user_error
from bkray.runtime.pipeline import run_pipeline

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("two_cpus")]

WORDS = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in "lmnrst"]


def prose(rng, words=40):
    """Text in which each word has eight possible successors, so that its order can be learned."""
    place, chosen = int(rng.integers(len(WORDS))), []
    for _ in range(words):
        chosen.append(WORDS[place])
        place = (place * 7 + int(rng.integers(8))) % len(WORDS)
    return " ".join(chosen)


def changed(text, rng):
    words = text.split()
    words[int(rng.integers(len(words)))] = "other"
    return " ".join(words)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Split files: 300 training texts, changed copies of 30 of them and of 10 held-out ones, 40 shuffled."""
    folder, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    train = [prose(rng) for _ in range(300)]
    held_out = {name: [prose(rng) for _ in range(40)] for name in ("validation", "test")}
    originals = [*train[:30], *held_out["validation"][:5], *held_out["test"][:5]]
    copies = [changed(text, rng) for text in originals]
    shuffled = [" ".join(rng.permutation(prose(rng).split())) for _ in range(40)]
    held_out["test"].append(changed(held_out["test"][30], rng))  # held-out text is left as it is
    target = [prose(rng) for _ in range(30)]
    planted = [
        target[0],
        changed(target[1], rng),
        f"{prose(rng)} {' '.join(target[2].split()[5:25])} {prose(rng)}",
    ]
    (folder / "target").mkdir()
    for name, texts in {"train": ["of its own"], "validation": target[:20], "test": target[20:]}.items():
        (folder / "target" / f"{name}.txt").write_text("\n".join(texts))
    for name, texts in {"train": train + copies + shuffled + planted, **held_out}.items():
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text(lines)
    near = [" ".join(rng.choice(WORDS[:30], 40)) for _ in range(60)]
    lines = [*(json.dumps({"text": text}) for text in near), "{broken"]
    (folder / "near.jsonl").write_text("\n".join(lines))
    (folder / "trusted").mkdir()
    sample = [*(prose(rng).encode() for _ in range(400)), b"\xff"]
    (folder / "trusted" / "sample.txt").write_bytes(b"\n".join(sample))
    return {
        "folder": folder,
        "clean": train[30:],
        "copies": copies,
        "shuffled": shuffled,
        "planted": planted,
    }


def near_target(corpus):
    return {"kind": "jsonl", "path": str(corpus["folder"] / "near.jsonl"), "validation": 0.2, "test": 0.2}


def recipe(corpus, **parts):
    trusted = {"kind": "text", "path": str(corpus["folder"] / "trusted"), "document": "line"}
    target = {"kind": "text", "path": str(corpus["folder"] / "target"), "document": "line"}
    cleaning = {
        "near": {},
        "quality": {"sample": trusted},
        "leakage": {"held_out_of": {"target": target}},
        "nearest": {"to": near_target(corpus), "keep": 0.5},
    } | parts
    paths = [str(corpus["folder"] / f"{name}.jsonl") for name in ("train", "validation", "test")]
    return parse_recipe({"name": "t", "corpus": {"kind": "jsonl", "path": paths}, "cleaning": cleaning})


def prepared(recipe, out, until="nearest", **options):
    return run_pipeline(recipe, out, until=until, progress=Progress(Console(quiet=True)), **options)


@pytest.fixture(scope="module")
def usual(corpus, tmp_path_factory):
    return prepared(recipe(corpus), tmp_path_factory.mktemp("usual"), until="windows")


def rows(artifact):
    return {row["doc_id"]: row for part in artifact.parts for row in pq.read_table(part).to_pylist()}


def test_a_training_document_with_a_kept_twin_goes_whatever_the_split(corpus, usual):
    found = usual.artifacts["deduplicated"]
    before, kept = rows(usual.artifacts["decontaminated"]), rows(found)
    removed = pq.read_table(found.path / "removed.parquet").to_pylist()
    assert [row["doc_id"] for row in removed] == sorted(before.keys() - kept.keys())
    assert found.manifest["removed"] == len(removed) == 40
    assert found.manifest["details"]["reasons"] == {"near duplicate": 40}
    assert found.manifest["details"]["crowded"] == 0
    assert "40 removed (near duplicate)" in found.manifest["summary"]
    for row in removed:
        assert before[row["doc_id"]]["split"] == "train"
        twin = kept[row["twin_id"]]
        assert twin["split"] != "train" or twin["doc_id"] < row["doc_id"]
        assert 0.6 <= row["value"] < 1.0
        words = zip(before[row["doc_id"]]["text"].split(), twin["text"].split(), strict=True)
        assert sum(a == b for a, b in words) == 39
    texts = {row["text"] for row in kept.values()}
    assert not texts & set(corpus["copies"][30:]), "copies of held-out documents are trained on"


def test_what_another_corpus_holds_out_goes_first(corpus, usual):
    """Planted in the training file: a copy, a near copy and a quotation of its test documents."""
    found, documents = usual.artifacts["decontaminated"], rows(usual.artifacts["documents"])
    removed = pq.read_table(found.path / "removed.parquet").to_pylist()
    by_text = {documents[row["doc_id"]]["text"]: row["reason"] for row in removed}
    kinds = ("equal", "near duplicate", "overlap")
    reasons = [f"{kind}, held out of target" for kind in kinds]
    assert by_text == dict(zip(corpus["planted"], reasons, strict=True))
    manifest = found.manifest
    assert manifest["details"]["reasons"] == dict.fromkeys(reasons, 1)
    assert manifest["details"]["held_out"] == {"target": 30}
    assert manifest["details"]["crowded"] == 0
    assert "1 removed (overlap, held out of target)" in manifest["summary"]
    assert rows(found).keys() == documents.keys() - {row["doc_id"] for row in removed}


def test_words_in_no_order_go_and_held_out_text_stays(corpus, usual):
    found = usual.artifacts["filtered"]
    kept = list(rows(found).values())
    removed = pq.read_table(found.path / "removed.parquet")
    texts = {row["text"] for row in kept}
    assert not texts & set(corpus["shuffled"])
    assert len(texts & set(corpus["clean"])) >= 0.95 * 270
    assert set(removed["reason"].to_pylist()) <= {"domain", "order"}
    splits = [row["split"] for row in kept]
    assert splits.count("train") == 340 - removed.num_rows
    assert len(splits) - splits.count("train") == 81
    details = found.manifest["details"]
    assert details["sample"] == 400
    assert sum(details["reasons"].values()) == found.manifest["removed"] == removed.num_rows


def test_words_in_no_order_go_where_a_part_of_the_pool_is_counted(corpus, usual, tmp_path, monkeypatch):
    in_parts = partial(stages.write_parts, rows_per_part=50)
    for module in (prepare, cleaning):
        monkeypatch.setattr(module, "write_parts", in_parts)
    monkeypatch.setattr(cleaning, "_UNIGRAM_PARTS", 2)
    asked = recipe(corpus, leakage=None, nearest=None, near=None)
    counted = prepared(asked, tmp_path / "some", until="filtered").artifacts["filtered"]
    assert len(counted.parts) > 4
    texts = {row["text"] for row in rows(counted).values()}
    assert not texts & set(corpus["shuffled"])
    assert len(texts & set(corpus["clean"])) >= 0.95 * 270
    monkeypatch.setattr(cleaning, "_UNIGRAM_PARTS", 99)
    whole = prepared(asked, tmp_path / "whole", until="filtered").artifacts["filtered"]
    thresholds = [found.manifest["details"]["threshold"] for found in (counted, whole)]
    assert thresholds[0] != thresholds[1], "the pool is counted as a whole"


def test_the_share_nearest_to_what_a_target_trains_on_stays(usual):
    """The target's words are the first 30 of all, and its held-out documents are not asked."""
    before, kept = rows(usual.artifacts["filtered"]), rows(usual.artifacts["nearest"])
    train = [row for row in before.values() if row["split"] == "train"]
    stays = [row for row in train if row["doc_id"] in kept]
    assert len(stays) == round(0.5 * len(train))
    assert {row["doc_id"] for row in before.values() if row["split"] != "train"} <= kept.keys()

    def shared(row):
        return sum(word in WORDS[:30] for word in row["text"].split())

    goes = [row for row in train if row["doc_id"] not in kept]
    assert min(map(shared, stays)) >= max(map(shared, goes)) - 2, "rare words count a little more"
    assert np.mean([shared(row) for row in stays]) > 1.5 * np.mean([shared(row) for row in goes])
    found = usual.artifacts["nearest"]
    assert found.manifest["details"]["reasons"] == {"farther": len(goes)}
    assert 24 <= found.manifest["details"]["target"] <= 48, "about 0.6 of 60"
    removed = pq.read_table(found.path / "removed.parquet")
    assert removed["doc_id"].to_pylist() == sorted(row["doc_id"] for row in goes)


def test_bad_rows_of_the_other_corpora_are_set_aside_and_counted(usual):
    found = {name: usual.artifacts[name] for name in ("decontaminated", "filtered", "nearest")}
    counts = {name: artifact.manifest["rejects"] for name, artifact in found.items()}
    assert counts == {"decontaminated": {}, "filtered": {"not UTF-8": 1}, "nearest": {"malformed JSON": 1}}
    assert found["nearest"].manifest["summary"].endswith(", 1 rows of cleaning.nearest.to rejected")
    rejects = {name: pq.read_table(made.path / "rejects.parquet").to_pylist() for name, made in found.items()}
    assert {name: [(row["source"], row["ordinal"]) for row in table] for name, table in rejects.items()} == {
        "decontaminated": [],
        "filtered": [("sample.txt", 400)],
        "nearest": [("near.jsonl", 60)],
    }


def test_windows_are_packed_from_what_is_left(usual):
    kept, packed = rows(usual.artifacts["nearest"]), usual.artifacts["windows"]
    ids = {row["doc_id"] for part in packed.parts for row in pq.read_table(part).to_pylist()}
    assert ids <= kept.keys()
    assert packed.splits["train"] > 20


def test_all_are_the_same_bytes_for_other_blocks(corpus, usual, tmp_path, monkeypatch):
    def in_nine_blocks(parts, split=None):
        dataset = stages.read_parts(parts).repartition(9)
        return dataset if split is None else stages.map_tables(dataset, stages._OfSplit(split), 0.5)

    monkeypatch.setattr(cleaning, "_BUCKETS", 3)
    for module in (cleaning, leakage, nearest):
        monkeypatch.setattr(module, "read_parts", in_nine_blocks)
    other = prepared(recipe(corpus), tmp_path)
    for name in ("decontaminated", "deduplicated", "filtered", "nearest"):
        folders = [run.artifacts[name].path for run in (usual, other)]
        contents = [{path.name: path.read_bytes() for path in folder.glob("*.parquet")} for folder in folders]
        assert contents[0] == contents[1]
        assert len(contents[0]) == (2 if name == "deduplicated" else 3)


@pytest.mark.parametrize("named", ["leakage", "quality", "nearest"])
def test_an_error_of_another_corpus_is_said_by_itself(corpus, usual, tmp_path, named):
    wrong = near_target(corpus) | {"text_field": "texts"}
    sample = {key: wrong[key] for key in ("kind", "path", "text_field")}
    asked = {
        "leakage": {"held_out_of": {"it": wrong}},
        "quality": {"sample": sample},
        "nearest": {"to": wrong, "keep": 0.5},
    }
    off = dict.fromkeys(("near", *asked))
    wanted = recipe(corpus, **{**off, named: asked[named]})
    until = {"leakage": "decontaminated", "quality": "filtered"}.get(named, named)
    with pytest.raises(Exception, match=r"texts|UDF") as caught:
        prepared(wanted, tmp_path / "out", until=until, artifacts=usual.folder / "artifacts")
    error = str(find_user_error(caught.value))
    assert error.startswith(f"cleaning.{named}.")
    assert "no text_field 'texts'; there are text; did you mean text_field: text?" in error


def test_a_sample_that_is_like_nothing_in_the_corpus(corpus, usual, tmp_path):
    (tmp_path / "sample.txt").write_text("\n".join(f"{n} times {n * n} and so on" for n in range(100)))
    trusted = {"kind": "text", "path": str(tmp_path / "sample.txt"), "document": "line"}
    wanted = recipe(corpus, near=None, leakage=None, nearest=None, quality={"sample": trusted})
    with pytest.raises(Exception, match="cleaning") as caught:
        prepared(wanted, tmp_path / "out", until="filtered", artifacts=usual.folder / "artifacts")
    error = str(find_user_error(caught.value))
    assert "filtered: no training document is left, 383 removed" in error
    assert "bring a sample that is like the corpus" in error
