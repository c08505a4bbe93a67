"""The door for `ray job submit`: python -m pipelines.<name> RECIPE [key=value …] [--out DIR] [--cpus N]."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from bkray.config import load_recipe
from bkray.runtime.cluster import inside_job
from bkray.runtime.exits import exit_codes
from bkray.runtime.pipeline import RunResult, run_pipeline
from bkray.runtime.stopwatch import process_seconds


def default_out() -> Path:
    """`$BKRAY_OUT`, or ./runs; a submitted job works in a copy that vanishes, so there it is ~/bkray-runs."""
    if given := os.environ.get("BKRAY_OUT"):
        return Path(given)
    return Path.home() / "bkray-runs" if inside_job() else Path("runs")


_WORSE = "          tuning made it worse: lower training.lr or training.tokens, or keep the model before it"


def closing_lines(result: RunResult) -> list[str]:
    """What a person wants to know at the end: where the report is, how good the model, what it cost."""
    if result.summary is None:
        return [f"ready: {result.folder}"]
    held_out, ledger = result.summary["held_out"], result.summary["ledger"]
    baselines = result.summary["baselines"]
    compared = [f"unigram {baselines['unigram']:.4f}", f"3-gram {baselines['trigram']:.4f}"]
    if start := result.summary.get("start"):
        compared.insert(0, f"before tuning {start['bits_per_byte']:.4f}")
    worse = start and start["bits_per_byte"] < held_out["bits_per_byte"]
    return [
        f"held-out  {held_out['bits_per_byte']:.4f} bits per byte on {held_out['split']} "
        f"({', '.join(compared)})",
        *([_WORSE] if worse else []),
        f"cost      {ledger['total_flops']:.3g} FLOPs, {ledger['tokens_seen']:,} tokens seen "
        f"({ledger['unique_tokens']:,} distinct), {ledger['wall_s']:.0f} s",
        f"report    {result.folder / 'report.html'}",
    ]


def arguments(description: str | None, file: str, example: str) -> argparse.Namespace:
    """The command line of a script that takes one YAML `file`: file, overrides, out (absolute), cpus."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("file", type=Path, metavar=file.upper(), help=f"YAML file of the {file}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"for example {example}")
    parser.add_argument(
        "--out", type=Path, default=default_out(), help="folder for runs, on a disk all nodes reach"
    )
    parser.add_argument(
        "--cpus", type=int, help="logical CPUs of a local cluster (default: the cores there are)"
    )
    given = parser.parse_args()
    given.out = given.out.absolute()
    return given


def main(until: str, description: str) -> None:
    """Parse the command line and run the pipeline up to stage `until`; exits with the run's code."""
    given = arguments(description, "recipe", "training.lr=3e-4")
    with exit_codes():
        recipe = load_recipe(given.file, given.overrides)
        result = run_pipeline(recipe, given.out, until=until, cpus=given.cpus, earlier=process_seconds())
        print("\n".join(closing_lines(result)))
