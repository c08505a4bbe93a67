"""The whole way on a small corpus: results, repetition, kills, other CPUs."""

import json
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import load_file

from bkray.corpus.tokenizer import load_tokenizer
from tests.forks import Command

pytestmark = [pytest.mark.end_to_end, pytest.mark.ray]

ROOT = Path(__file__).parents[2]


def files(run):
    """The bytes of every file that must not depend on how the run went."""
    kept = [*run.glob("artifacts/*/part-*.parquet"), *run.glob("artifacts/*/*.safetensors")]
    kept += [
        *run.glob("artifacts/*/tokenizer.json"),
        *run.glob("artifacts/*/rejects.parquet"),
        run / "model/model.safetensors",
    ]
    return {str(path.relative_to(run)): path.read_bytes() for path in kept}


@pytest.fixture(scope="module")
def corpus(texts, tmp_path_factory):
    """The small corpus and a row that is none."""
    folder = tmp_path_factory.mktemp("corpus")
    for path in texts.iterdir():
        shutil.copy2(path, folder)
    (folder / "c.jsonl").write_text("{broken\n")
    return folder


@pytest.fixture
def small(small, corpus):
    """The small recipe, trained for so long that it can be disturbed three times."""
    recipe = yaml.safe_load(small.read_text())
    recipe["corpus"]["path"] = str(corpus)
    recipe["training"]["tokens"] = 120_000
    small.write_text(yaml.safe_dump(recipe))
    return small


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The files of an undisturbed run, by recipe text; made once."""
    made = {}

    def get(bkray, small):
        if "run" not in made:
            out = tmp_path_factory.mktemp("reference")
            assert bkray("--version").returncode == 0  # starts the server of which processes are forks
            made["started"] = time.time()
            finished = bkray("run", small, "--out", out, "--cpus", 2)
            assert finished.returncode == 0, finished.stderr
            made["run"], made["finished"] = out / "small", finished
        return made["run"], made["finished"]

    get.started = lambda: made["started"]
    return get


def test_a_checkpoint_becomes_a_model_like_the_runs_own(bkray, bkray_here, small, reference, tmp_path):
    """The last one the same, with its weights averaged as the recipe asks."""
    run = shutil.copytree(reference(bkray, small)[0], tmp_path / "copy")
    first, *_, last = sorted((run / "checkpoints").glob("step-*"))
    finished = load_file(run / "model" / "model.safetensors")
    for checkpoint in (first, last):
        made = bkray_here("export", checkpoint)
        assert made.returncode == 0, made.stderr
        assert made.stdout.strip() == str(run / "exported" / checkpoint.name)
        weights = load_file(run / "exported" / checkpoint.name / "model.safetensors")
        equal = [np.array_equal(weights[name], finished[name]) for name in finished]
        assert all(equal) if checkpoint == last else not all(equal)
        assert bkray_here("generate", run / "exported" / checkpoint.name, "--tokens", "2").returncode == 0
    state = first / "state.pt"
    state.write_bytes(state.read_bytes()[:-1])
    manifest = last / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"key": "', '"key": "0'))
    faults = {first: "is damaged", last: "belongs to another run", run / "model": "no checkpoint of a run"}
    for folder, words in faults.items():
        refused = bkray_here("export", folder)
        assert refused.returncode == 2
        assert words in " ".join(refused.stderr.split())


def test_a_run_leaves_what_is_promised_and_changes_nothing_when_repeated(
    bkray, bkray_here, small, reference, tmp_path
):
    run, finished = reference(bkray, small)
    summary = json.loads((run / "summary.json").read_text())
    assert f"{summary['held_out']['bits_per_byte']:.4f} bits per byte" in finished.stdout
    assert str(run / "report.html") in finished.stdout
    seen = f"{summary['ledger']['tokens_seen']:,} tokens seen"
    assert f"cost      {summary['ledger']['total_flops']:.3g} FLOPs, {seen}" in finished.stdout
    assert {"bits_per_byte", "nats_per_token", "perplexity", "split"} <= summary["held_out"].keys()
    assert {"total_flops", "by_kind", "wall_s", "tokens_seen", "unique_tokens"} <= summary["ledger"].keys()
    spent = summary["ledger"]["by_kind"]
    assert {"training", "optimizer", "validation", "proxy_training", "scoring", "evaluation"} <= spent.keys()
    assert all(spent[kind]["flops"] > 0 for kind in ("training", "proxy_training", "scoring"))
    assert 4 <= spent["samples"]["tokens"] <= 1 + len("the scan") + 12
    for kind in ("samples", "evaluation"):  # the model is the same, so a token costs the same
        spent[kind]["each"] = spent[kind]["flops"] / spent[kind]["tokens"]
    assert spent["samples"]["each"] == pytest.approx(spent["evaluation"]["each"], rel=0.2)
    manifests = [json.loads(path.read_text()) for path in run.glob("artifacts/*/manifest.json")]
    assert all(manifest["versions"] == summary["versions"] for manifest in manifests)
    skill = summary["skill"]["rank_correlation"]
    assert {"compression", "rarity", "sentence_length", "loss", "entropy", "margin"} <= skill.keys()
    scores, seen = (
        pq.read_table(next(run.glob(f"artifacts/{stage}-*/part-00000.parquet")))
        for stage in ("held_out_scores", "evaluation")
    )
    ranks = [np.argsort(np.argsort(table[name])) for table, name in ((scores, "loss"), (seen, "nats"))]
    assert scores["window_id"].equals(seen["window_id"])
    assert skill["loss"] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-3)
    assert summary["ledger"]["by_kind"]["skill"]["flops"] > 0
    assert summary["world_size"] == 2
    assert summary["held_out"]["bits_per_byte"] < summary["baselines"]["unigram"]
    assert {path.name for path in (run / "model").iterdir()} >= {
        "model.safetensors",
        "tokenizer.json",
        "config.json",
    }
    assert (run / "metrics.jsonl").exists()
    assert list((run / "tensorboard").glob("events.*"))
    assert (run / "notes.log").read_text() == "backend auto on cpu torch.float32: numba\n"
    assert (run / "resolved.yaml").exists()
    assert list((run / "checkpoints").glob("step-*"))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    again = bkray_here("run", small, "--out", run.parent, "--cpus", 2)
    assert again.returncode == 0
    assert "already complete, nothing to do" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before

    text = bkray_here("generate", run, "--prompt", "the scan", "--tokens", "8")
    assert text.returncode == 0
    assert text.stdout.startswith("the scan")
    assert "tokens a second" in text.stderr
    assert "tokens a second" not in text.stdout
    renamed = tmp_path / "renamed"
    shutil.copytree(run, renamed)
    (renamed / "report.html").unlink()
    assert bkray_here("report", renamed).returncode == 0
    assert (renamed / "report.html").read_bytes() == (run / "report.html").read_bytes()
    plan = bkray_here("plan", small, "--out", run.parent)
    assert plan.stdout.count("cached") == 11
    (windows,) = run.glob("artifacts/windows-*/manifest.json")
    assert re.search(rf"windows +cached +{json.loads(windows.read_text())['rows']:,} ", plan.stdout)


def test_the_ledger_has_every_second_up_to_the_report(bkray, small, reference):
    run, _ = reference(bkray, small)
    ledger = json.loads((run / "summary.json").read_text())["ledger"]
    assert ledger["wall_s"] == pytest.approx(sum(cost["seconds"] for cost in ledger["by_kind"].values()))
    passed = (run / ".seconds-startup").stat().st_mtime - reference.started()
    assert ledger["wall_s"] == pytest.approx(passed, rel=0.05)


def test_its_report_counts_the_augmented_documents(bkray, small, reference):
    run, _ = reference(bkray, small)
    (manifest,) = run.glob("artifacts/augmented-*/manifest.json")
    kinds = json.loads(manifest.read_text())["details"]["augmentation"]
    assert [kind["kind"] for kind in kinds] == ["deletion", "swap"]
    assert all(kind["made"] > 50 for kind in kinds)
    section = (run / "report.html").read_text().partition("<h2>Augmented documents</h2>")[2]
    cells = re.findall(r"<t[hd]\b.*?>(.*?)</t[hd]>", section.partition("</table>")[0], re.DOTALL)
    assert cells == ["Kind", "Originals", "Made", "Of these unchanged", "Dropped"] + [
        cell
        for kind in kinds
        for cell in (kind["kind"], *(str(kind[each]) for each in ("originals", "made", "unchanged")), "")
    ]


def test_a_browser_shows_its_report(bkray, small, reference, in_browser):
    run, _ = reference(bkray, small)
    dom = in_browser(run / "report.html")
    bits = json.loads((run / "summary.json").read_text())["held_out"]["bits_per_byte"]
    assert f'<dd id="bits-per-byte">{bits:.3f}</dd>' in dom
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", dom, re.DOTALL)
    assert len(captions) == dom.count("<figure") <= dom.count("<svg")
    for about in ("Cross-entropy a token", "Where the cost went", "easy windows first", "Difficulty of the"):
        assert sum(about in caption for caption in captions) == 1, about
    sections = dict(zip(*[iter(re.split(r"<h2>(.*?)</h2>", dom)[1:])] * 2, strict=True))
    assert "malformed JSON" in sections["Rejected rows"]
    (training_set,) = run.glob("artifacts/training_set-*")
    tokens = pq.read_table(training_set / "part-00000.parquet", columns=["tokens"])["tokens"]
    (tokenizer,) = run.glob("artifacts/tokenizer-*/tokenizer.json")
    easiest = load_tokenizer(tokenizer).decode(tokens[0].as_py()[1:])
    shown = " ".join(sections["Easiest and hardest training windows"].split())
    assert " ".join(easiest.split()[1:12]) in shown
    assert "the scan" in sections["Generated text"]
    assert "window: 48" in sections["Recipe"]
    assert "torch" in sections["Versions"]


def test_compressed_copies_are_smaller_and_evaluated(bkray, bkray_here, small, reference):
    run, _ = reference(bkray, small)
    before = json.loads((run / "summary.json").read_text())["held_out"]
    finished = bkray("compress", run, "int8", "int4:32", "prune:0.25+int8", "--cpus", 1)
    assert finished.returncode == 0, finished.stderr
    original, *copies = json.loads((run / "compressed" / "compression.json").read_text())
    assert original["held_out"] == before
    assert [copy["method"] for copy in copies] == ["int8", "int4:32", "prune:0.25+int8"]
    for copy in copies:
        assert f"{copy['held_out']['bits_per_byte']:.4f}" in finished.stderr
        assert copy["held_out"]["windows"] == before["windows"]
        assert copy["held_out"]["nats"] != before["nats"]
        assert copy["held_out"]["bits_per_byte"] < 1.2 * before["bits_per_byte"]
        assert copy["bytes"] == (Path(copy["path"]) / "model.safetensors").stat().st_size
        assert copy["bytes"] < 0.6 * original["bytes"]
    assert copies[1]["bytes"] < copies[0]["bytes"]
    assert copies[2]["parameters"] == original["parameters"] - 2 * 32 * 32  # of one layer's 128 channels
    text = bkray_here("generate", copies[2]["path"], "--prompt", "the scan", "--tokens", "4")
    assert text.stdout.startswith("the scan")
    made = {path: path.stat().st_mtime_ns for path in run.glob("compressed/*/*")}
    again = bkray_here("compress", run, "int8", "prune:0.25+int8")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in run.glob("compressed/*/*")} == made
    refused = bkray_here("compress", run, "prune:0.999")
    assert refused.returncode == 2
    assert "leaves 0 of 128 channels" in refused.stderr
    refused = bkray_here("compress", run, "layers:1")
    assert refused.returncode == 2
    assert "layers:1: the model has a single layer" in refused.stderr
    assert not list(run.rglob(".partial-*"))


def test_disturbed_at_every_turn_it_ends_with_the_same_bytes(bkray, small, reference, tmp_path, kill_node):
    """In data stages the driver or the whole node is killed; in training the node, then comes an interrupt.

    Then the driver is killed there too: its workers go on for some seconds, often to the end.

    Each time the CPUs are others; data and weights are bit-equal.
    """
    run, _ = reference(bkray, small)
    out = tmp_path / "out"
    turns = [
        ("documents", 2, "kill the driver"),
        ("scored", 3, "kill the node"),
        ("training", 4, "kill the node"),
        ("training", 2, "interrupt"),
        ("training", 3, "kill the driver"),
        ("evaluation", 2, "kill the driver"),
    ]
    for stage, cpus, how in turns:
        code, stderr = disturbed(small, out, cpus, stage, how, kill_node)
        assert code == (130 if how == "interrupt" else -signal.SIGKILL), stderr
        if how == "interrupt":
            assert "run the same command again to go on" in stderr
            assert "Traceback" not in stderr
    again = bkray("run", small, "--out", out, "--cpus", 3)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("already there") == 10
    assert files(out / "small") == files(run)
    assert not list(out.rglob(".partial-*"))
    undisturbed, in_all = (startup_seconds(each) for each in (run, out / "small"))
    assert in_all > 3 * undisturbed > 0, "seven commands to one"


def startup_seconds(run):
    return json.loads((run / "summary.json").read_text())["ledger"]["by_kind"]["startup"]["seconds"]


def disturbed(recipe, out, cpus, stage, how, kill_node):
    """Start a run, disturb it when it has reached the stage; return its exit code and stderr.

    Workers outlive their driver by some seconds, in which they save more checkpoints: they are waited for, as
    the next turn would take those for its own.
    """
    log = out.parent / "stderr.txt"
    log.unlink(missing_ok=True)
    process = Command(["run", recipe, "--out", out, "--cpus", cpus], ROOT, stderr=log)
    saved = set((out / "small").glob("checkpoints/step-*"))
    process.wait_for(lambda: reached(out / "small", stage, saved))
    workers = [each for each in psutil.Process(process.pid).children(recursive=True) if trains(each)]
    assert workers or stage != "training"
    if how == "kill the node":
        kill_node(process)
    else:
        process.send_signal(signal.SIGINT if how == "interrupt" else signal.SIGKILL)
    process.wait(timeout=120)
    started = time.monotonic()
    while any(map(trains, workers)):
        assert time.monotonic() - started < 120
        time.sleep(0.02)
    return process.returncode, log.read_text()


def trains(process):
    """Whether a process is a worker of Ray Train's, and not yet dead."""
    try:
        return "RayTrainWorker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # or a zombie
        return False


def reached(run, stage, saved):
    """Whether the stage is at work; training, whether it has written another checkpoint than `saved`."""
    if stage == "training":
        return bool(set(run.glob("checkpoints/step-*")) - saved)
    return any(run.glob(f"artifacts/.partial-{stage}-*"))
