"""Every command of the README, as it stands there, in a checkout whose recipes are small."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bkray.config import load_recipe

pytestmark = [pytest.mark.end_to_end, pytest.mark.ray]

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ELSEWHERE = {
    "make test": "runs this test, and make test-long some more",
    "ray start --head": "test_job.py, with ports of its own",
    "RAY_AUTH_MODE=token ray job submit": "test_job.py",
    "bkray transfer": "test_transfer.py, with the text at hand that the README goes on with",
}
SMALL = {
    "window": 48,
    "tokenizer": {"vocab_size": 300},
    "model": {"kind": "resnet_bk", "d_model": 32, "n_layers": 1},
    "training": {"tokens": 8000, "batch_tokens": 384, "eval_windows": 8, "eval_every": 10, "workers": 1},
    "samples": {"prompts": ["the scan"], "tokens": 8},
}


def fenced(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands():
    """The command lines of the README's shell blocks and running text, continued lines joined, in order."""
    for block, inline in re.findall(r"^```bash\n(.*?)^```|`(bkray \w+ \S+\.yaml[^`]*)`", README, re.M | re.S):
        for line in (block or inline).replace("\\\n", " ").splitlines():
            if command := re.sub(r"\s+#.*", "", line).strip():
                yield command


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, texts):
    """A copy of the project with this environment and small recipes on a small corpus."""
    folder = tmp_path_factory.mktemp("parent") / "checkout"
    made = shutil.ignore_patterns(".git", ".venv", "runs", "build", "__pycache__", ".*_cache", "*.egg-info")
    shutil.copytree(ROOT, folder, ignore=made)
    environment = folder / ".venv"
    environment.mkdir()
    for entry in Path(sys.prefix).iterdir():
        if entry.name not in {".installed", ".ready"}:
            (environment / entry.name).symlink_to(entry)
    for stamp in (".installed", ".ready"):
        (environment / stamp).touch()
    corpus = {"kind": "jsonl", "path": str(texts), "validation": 0.1, "test": 0.1}
    recipes = folder / "pipelines" / "recipes"
    quickstart = {"name": "quickstart", "corpus": corpus, "curriculum": {"start": 0.5}, **SMALL}
    (recipes / "quickstart.yaml").write_text(yaml.safe_dump(quickstart))
    wikitext = yaml.safe_load((ROOT / "pipelines" / "recipes" / "wikitext2.yaml").read_text())
    (recipes / "wikitext2.yaml").write_text(yaml.safe_dump({**wikitext, **SMALL}))
    small_corpus = yaml.safe_load((ROOT / "pipelines" / "recipes" / "small_corpus.yaml").read_text())
    small_corpus = {**small_corpus, "window": SMALL["window"], "samples": SMALL["samples"]}
    small_corpus["training"] |= SMALL["training"]
    (recipes / "small_corpus.yaml").write_text(yaml.safe_dump(small_corpus))
    documents = [json.loads(line)["text"] for line in (texts / "a.jsonl").read_text().splitlines()]
    (folder / "mine.txt").write_text("\n\n".join(documents))
    sweep = yaml.safe_load((ROOT / "tune" / "sweeps" / "quickstart.yaml").read_text())
    small_sweep = {
        "overrides": ["selection={kind: entropy}", "proxy={d_model: 16, n_layers: 1, tokens: 8000}"],
        "space": {
            "curriculum.pacing": {"kind": "choice", "values": ["exponential", "step"]},
            "curriculum.start": {"kind": "uniform", "low": 0.2, "high": 0.6},
            "selection.keep": {"kind": "choice", "values": [0.5, 0.8]},
        },
        "trials": 2,
        "grace_steps": 10,
    }
    (folder / "tune" / "sweeps" / "quickstart.yaml").write_text(yaml.safe_dump({**sweep, **small_sweep}))
    active = yaml.safe_load((recipes / "active_loop.yaml").read_text())
    few = {"overrides": active["overrides"] + ["training.tokens=8000"], "rounds": 1, "seeds": [0]}
    (recipes / "active_loop.yaml").write_text(yaml.safe_dump({**active, **few}))
    comparison = folder / "pipelines" / "comparisons" / "models_docstrings.yaml"
    arms = {
        name: {"model": {"kind": kind, "d_model": 16, "n_layers": 1}}
        for name, kind in (("resnet_bk", "resnet_bk"), ("gru", "gru"))
    }
    shrunk = {"overrides": [], "arms": arms, "learning_rates": [1e-2, 2e-2], "tuning_steps": 5, "steps": [5]}
    values = yaml.safe_load(comparison.read_text())
    comparison.write_text(yaml.safe_dump({**values, **shrunk, "timing_rounds": 3, "seeds": [0]}))
    (folder / "my_models.py").write_text(
        next(block for block in fenced("python") if "class Recurrent" in block)
    )
    return folder


@pytest.fixture(scope="module")
def wikitext(tmp_path_factory):
    """Files in WikiText-2's form."""
    folder = tmp_path_factory.mktemp("wikitext")
    for name, articles in (("train", 60), ("valid", 12), ("test", 12)):
        text = "".join(
            f" = Title {number} = \n \n The {name} article number {number} has words , and a sentence . \n"
            * 4
            for number in range(articles)
        )
        (folder / f"{name}.txt").write_text(text)
    return folder


def run(command, checkout):
    """Run one line in the checkout, its environment first on the path."""
    path = f"{checkout / '.venv' / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHON": sys.executable}
    return subprocess.run(
        command,
        check=False,
        cwd=checkout,
        env=environment,
        shell=True,
        capture_output=True,
        text=True,
        timeout=1800,
    )


@pytest.fixture(scope="module")
def finished(checkout, wikitext, two_cpus, bkray_here):
    """Every command of the README: {command: finished process}.

    Lines of the shell start a process and a Ray of their own; `bkray` itself is called in this one, on one
    Ray for all.
    """
    done = {}
    for command in commands():
        if any(map(command.startswith, ELSEWHERE)):
            continue
        line = command.replace("FOLDER", str(wikitext)).replace("FILE", "mine.txt")
        program, *arguments = shlex.split(line)
        if program == "bkray":
            done[command] = bkray_here(*arguments, cwd=checkout)
        else:
            done[command] = run(line, checkout)
        shown = f"{command}\n{done[command].stdout[-2000:]}\n{done[command].stderr[-4000:]}"
        assert done[command].returncode == 0, shown
    return done


def test_every_command_works_as_it_stands(checkout, finished):
    assert next(iter(finished)) == "make run"
    left = ("quickstart", "small-corpus", "recurrent", "wikitext2", "quickstart-sweep-winner", "three-points")
    for name in (*left, "active-loop"):
        assert (checkout / "runs" / name / "report.html").exists(), name
    shown = {
        name: (checkout / "runs" / name / "report.html").read_text() for name in ("quickstart", "wikitext2")
    }
    assert "Share of the data available" in shown["quickstart"]
    assert "Share of the data available" not in shown["wikitext2"], "it has no curriculum"
    tuned = json.loads((checkout / "runs" / "small-corpus" / "summary.json").read_text())
    assert tuned["start"]["bits_per_byte"] > tuned["held_out"]["bits_per_byte"]
    page = (checkout / "runs" / "small-corpus" / "report.html").read_text()
    assert re.search(r'<ul class="samples">\s*<li><pre class="prose">\s*<strong>the scan', page), (
        "the samples that the README promises"
    )
    snippet = next(block for block in fenced("python") if "load_model" in block)
    loaded = run(f"{shlex.quote(sys.executable)} -c {shlex.quote(snippet)}", checkout)
    assert loaded.returncode == 0, loaded.stderr


SCRIPTS = {
    "pipelines.end_to_end": "pipelines/recipes/quickstart.yaml",
    "pipelines.prepare": "pipelines/recipes/quickstart.yaml",
    "pipelines.train": "pipelines/recipes/quickstart.yaml",
    "pipelines.evaluate": "pipelines/recipes/quickstart.yaml",
    "pipelines.compress": "runs/quickstart",
    "tune.sweep": "tune/sweeps/quickstart.yaml",
    "pipelines.active_loop": "pipelines/recipes/active_loop.yaml",
    "pipelines.compare_models": "pipelines/comparisons/models_docstrings.yaml",
}
AS_MAIN = """
import runpy, sys
for script in sys.argv[1:]:
    sys.argv = script.split()
    print("##", sys.argv[0], file=sys.stderr)
    try:
        runpy.run_module(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        assert not ended.code, (script, ended.code)
"""


@pytest.fixture(scope="module")
def again(checkout, finished):
    """What the scripts for a cluster say of what is done: {script: stderr}; one process spares six starts."""
    scripts = " ".join(shlex.quote(f"{script} {argument}") for script, argument in SCRIPTS.items())
    made = {path: path.stat().st_mtime_ns for path in checkout.glob("runs/quickstart/compressed/*/*")}
    process = run(f"python -c {shlex.quote(AS_MAIN)} {scripts}", checkout)
    assert process.returncode == 0, process.stderr
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert len(made) == 3 * 5
    return dict(part.split("\n", 1) for part in process.stderr.split("## ")[1:])


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_scripts_for_a_cluster_find_what_is_done(again, script):
    assert script in README
    done = {
        "pipelines.compress": "",
        "pipelines.compare_models": "tuning        4 runs, 4 of them there before",
    }
    assert done.get(script, "already complete") in again[script]


def test_a_comparison_leaves_its_rows(checkout, finished):
    results = json.loads((checkout / "runs" / "models-docstrings" / "results.json").read_text())
    assert {row["arm"] for row in results["rows"]} == {"resnet_bk", "gru"}


def test_a_sweep_leaves_a_table_a_picture_and_a_winner(checkout, finished):
    first, again = (
        finished[command] for command in ("bkray sweep tune/sweeps/quickstart.yaml", "make sweep")
    )
    folder = checkout / "runs" / "quickstart-sweep"
    trials = json.loads((folder / "trials.json").read_text())
    assert [trial["name"] for trial in trials] == ["baseline", "trial-01", "trial-02"]
    assert trials[0]["status"] == "finished"
    assert all(trial["bits_per_byte"] > 0 and trial["flops"] > 0 for trial in trials)
    assert trials[1]["flops"] > trials[0]["flops"] or trials[1]["status"] == "stopped early"
    best = min((t for t in trials if t["status"] == "finished"), key=lambda t: t["bits_per_byte"])
    assert f"{best['name']} (best)" in first.stderr
    assert "already complete" in again.stderr
    assert "<svg" in (folder / "report.html").read_text()
    winner = yaml.safe_load((folder / "winner.yaml").read_text())
    assert winner["name"] == "quickstart-sweep-winner"
    assert {trial["parameters"].get("curriculum.pacing") for trial in trials[1:]} <= {"exponential", "step"}
    if not best["baseline"]:
        assert winner["selection"]["keep"] == best["parameters"]["selection.keep"]


def test_another_python_makes_the_environment():
    (line,) = re.findall(r"`(make run PYTHON=\S+)`", README)
    with_new = f"{line} --dry-run VENV=another"
    made = subprocess.run(with_new.split(), cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"{line.partition('=')[2]} -m venv another" in made
    assert "another/bin/bkray run" in made


@pytest.mark.parametrize("line", dict.fromkeys(re.findall(r"`(pip install [^`]+)`", README)))
def test_what_it_installs_is_what_these_tests_run_with(line, tmp_path):
    """No index is asked, and nothing is installed: the packages are there, in the versions of constraints."""
    shutil.copytree(ROOT / "bkray", tmp_path / "bkray", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, tmp_path)
    command = [sys.executable, "-m", *shlex.split(line), "--dry-run", "--no-index", "--no-build-isolation"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == "Would install bkray-0.1.0"


def test_every_corpus_line_is_a_recipe(tmp_path):
    (block,) = (block for block in fenced("yaml") if "name: mine" in block)
    lines = [line.removeprefix("# ") for line in block.splitlines() if "corpus:" in line]
    assert len(lines) == 7
    for line in lines:
        (tmp_path / "mine.yaml").write_text(f"name: mine\n{line}\n")
        assert load_recipe(tmp_path / "mine.yaml").name == "mine"
