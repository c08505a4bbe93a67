"""A run that starts from another's model: of another vocabulary, and of text that it is tested on."""

import io
import json
import random

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file

from bkray.config import load_recipe
from bkray.corpus import load_tokenizer
from bkray.corpus.tokenizer import train_tokenizer
from bkray.model import build_model
from bkray.reporting import RunLog, formats
from bkray.reporting.progress import Progress
from bkray.runtime.pipeline import run_pipeline
from bkray.training import export_model

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("two_cpus")]

PLAIN = ["difficulty=null", "selection=null", "curriculum=null", "proxy=null", "sampling=null"]
PLAIN += ["augmentation=[]", "training.trackers=[]", "training.skip=null", "training.average=null"]


def test_the_target_brings_its_vocabulary_and_its_layers_thaw(small, tmp_path):
    """At hardly a rate the weights stay those of the start."""
    sizes = [
        "model={kind: resnet_bk, d_model: 16, n_layers: 2}",
        "training.tokens=4000",
        "training.workers=1",
    ]
    pool = train_tokenizer(["das größte Rathaus der Stadt, die größte Stadt"] * 3, 280)
    pool.save(str(tmp_path / "pool.json"))
    recipe = load_recipe(small, [*PLAIN, *sizes])
    export_model(
        tmp_path / "start",
        build_model(recipe.model, pool.get_vocab_size()),
        recipe,
        tmp_path / "pool.json",
        pool.get_vocab_size(),
        {},
    )
    transfer = [f"training.start_from={tmp_path / 'start'}", "training.start_vocabulary=overlap"]
    transfer += ["training.unfreeze={at: [0.6]}", "training.lr=1e-9", "training.log_every=1"]
    done = run_pipeline(
        load_recipe(small, [*PLAIN, *sizes, *transfer]), tmp_path, progress=Progress(Console(quiet=True))
    )
    target = load_tokenizer(done.artifacts["tokenizer"].path / "tokenizer.json")
    shared = pool.get_vocab().keys() & target.get_vocab().keys()
    counts = {"shared": len(shared), "new": target.get_vocab_size() - len(shared)}
    assert done.summary["start_vocabulary"] == counts
    assert counts["new"] > 0
    assert f"{counts['shared']} tokens of the start model's" in done.artifacts["model"].manifest["summary"]
    folders = (tmp_path / "start", done.artifacts["model"].path)
    before, after = (load_file(folder / "model.safetensors") for folder in folders)
    for token in shared:
        at = (pool.token_to_id(token), target.token_to_id(token))
        rows = (before["embedding.weight"][at[0]], after["embedding.weight"][at[1]])
        torch.testing.assert_close(*map(torch.from_numpy, rows), atol=1e-6, rtol=0)
    assert json.loads((folders[1] / "config.json").read_text())["vocab_size"] == target.get_vocab_size()
    frozen = [line["frozen_layers"] for line in RunLog.read(done.folder / "metrics.jsonl")]
    assert sorted(set(frozen), reverse=True) == [1, 0]
    assert frozen == sorted(frozen, reverse=True)


def random_texts(seed, count):
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefgh", k=5)) for _ in range(400)]
    return [" ".join(rng.choices(words, k=60)) for _ in range(count)]


def split_files(folder, **splits):
    folder.mkdir()
    for split, texts in splits.items():
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return f"corpus={{kind: jsonl, path: {folder}}}"


def test_held_out_text_that_the_start_model_has_seen_is_counted(small, tmp_path):
    """In what the model before the start model learnt from as well, where that is still there."""
    held_out = {"validation": random_texts(1, 5), "test": random_texts(2, 6)}
    words = held_out["test"][1].split()
    nearly = held_out["validation"][3].replace(" ", " other ", 1)
    quoted = " ".join([*random_texts(3, 1)[0].split(), *words[10:24]])
    others = {"validation": random_texts(4, 3), "test": [held_out["test"][4], *random_texts(5, 3)]}
    pool = [*random_texts(6, 30), held_out["test"][0], nearly, quoted]
    middle = [*random_texts(7, 30), held_out["test"][0], held_out["test"][2]]
    own = [*random_texts(8, 30), held_out["test"][5]]
    sizes = [
        "model={kind: resnet_bk, d_model: 16, n_layers: 1}",
        "training.tokens=2000",
        "cleaning.exact=false",
    ]

    def run(name, corpus, start=None, until="model", console=None):
        from_ = ["tokenizer={}", f"training.start_from={start}"] if start else []
        recipe = load_recipe(small, [*PLAIN, *sizes, "training.workers=1", f"name={name}", corpus, *from_])
        progress = Progress(console or Console(quiet=True))
        return run_pipeline(recipe, tmp_path, until=until, progress=progress)

    first = run("first", split_files(tmp_path / "pool", train=pool, **others)).folder / "model"
    second = run("second", split_files(tmp_path / "middle", train=middle, **others), first).folder / "model"
    target = split_files(tmp_path / "target", train=own, **held_out)
    shown = io.StringIO()
    seen = run("tuned", target, second, "seen_before", Console(file=shown)).artifacts["seen_before"]
    assert seen.manifest["details"] == {
        "held_out": 11,
        "reasons": {
            "equal, held out of test": 2,
            "near duplicate, held out of validation": 1,
            "overlap, held out of test": 1,
        },
    }
    assert "4 of 11 held-out documents are" in " ".join(shown.getvalue().split())
    documents = run("tuned", target, second, "documents").artifacts["documents"]
    text_of = {row["doc_id"]: row["text"] for row in pq.read_table(documents.parts).to_pylist()}
    rows = pq.read_table(seen.path / "seen.parquet").to_pylist()
    assert {text_of[row["doc_id"]] for row in rows} == {*held_out["test"][:3], held_out["validation"][3]}

    other_pool = [*random_texts(9, 30), held_out["test"][3]]
    other = run("other", split_files(tmp_path / "other-pool", train=other_pool, **others), first).folder
    from_ = ["tokenizer={}", f"training.start_from={second}"]
    from_ += [f"training.replay={{share: 0.5, run: {other}}}"]
    with_replay = load_recipe(small, [*PLAIN, *sizes, "training.workers=1", "name=replaying", target, *from_])
    replaying = run_pipeline(
        with_replay, tmp_path, until="seen_before", progress=Progress(Console(quiet=True))
    )
    assert sum(replaying.artifacts["seen_before"].manifest["details"]["reasons"].values()) == 5

    first.parent.rename(tmp_path / "moved")
    done = run("tuned", target, second, "evaluation")
    assert done.summary["seen_before"] == {
        "held_out": 11,
        "reasons": {"equal, held out of test": 2},
        "lost": str(first),
    }
    training = second.parent / "model" / "config.json"
    flops = sum(kind["flops"] for kind in json.loads(training.read_text())["training"]["ledger"].values())
    assert done.summary["given"] == {
        "training.start_from": {"folder": str(second), "training_flops": pytest.approx(flops)}
    }
    assert flops > 0
    page = (done.folder / "report.html").read_text()
    assert f"training.start_from {second} ({formats.flops(flops)} FLOPs)." in page
    assert f"2 of 11; not looked for in what {first} learnt from, which is not beside it" in page
