"""What the command line shows without training anything: the plan of a recipe, text of a finished model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bkray.config import Recipe, UserError
from bkray.corpus import load_tokenizer
from bkray.runtime.cluster import TASK_CPUS, disk_bytes, local_cpus
from bkray.runtime.evaluation import write
from bkray.runtime.pipeline import plan_run
from bkray.training import load_model

_RESOURCES = {
    "tokenizer": "1 task x 1 CPU",
    "proxy": "1 task x 1 CPU",
    "scored": "{cpus} actors x {task:g} CPU",
    "soft_targets": "{cpus} actors x {task:g} CPU",
    "held_out_scores": "1 task x 1 CPU",
    "evaluation": "{cpus} actors x {task:g} CPU, 1 task x {task:g} CPU",
    "forgetting": "{cpus} actors x {task:g} CPU",
    "model": "{workers} workers x 1 CPU",
}


def print_plan(recipe: Recipe, out: Path, cpus: int | None) -> None:
    """Print stages, cached or to run, rows, resources and the CPU budget. Ray is not started."""
    plan = plan_run(recipe, out)
    available = local_cpus(cpus)
    table = Table("stage", "state", "rows", "resources", "artifact", box=None, header_style="bold")
    for name, stage in plan.stages.items():
        artifact = stage.find()
        resources = _RESOURCES.get(name, "tasks x 1 CPU").format(
            cpus=available, task=TASK_CPUS, workers=recipe.training.workers
        )
        rows = f"{artifact.rows:,}" if artifact else ""
        table.add_row(
            name, "cached" if artifact else "to run", rows, resources, str(stage.path.relative_to(out))
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    workers = recipe.training.workers
    named = "worker" if workers == 1 else "workers"
    verdict = (
        "fits"
        if workers <= available
        else f"does not fit: set training.workers={available} or --cpus {workers}"
    )
    console.print(
        f"corpus    {len(plan.shards):,} shards, {plan.corpus_bytes / 1e6:,.1f} MB of text; "
        f"about {disk_bytes(recipe, plan.corpus_bytes) / 1e6:,.0f} MB of disk\n"
        f"training  {recipe.steps:,} steps of {recipe.batch_windows} windows of {recipe.window} tokens\n"
        f"CPUs      {workers} {named} x 1 CPU = {workers} of {available}: {verdict}",
        highlight=False,
    )


def print_text(folder: Path, prompt: str, tokens: int, temperature: float, seed: int) -> None:
    """Print what the model of a run's folder, or of an exported model's folder, writes after `prompt`.

    Its speed goes to stderr, so that stdout holds the text alone.
    """
    exported = folder / "model" if (folder / "model" / "config.json").exists() else folder
    if not (exported / "config.json").exists():
        raise UserError(
            f"{folder} holds no trained model: name the folder of a finished run, for example runs/quickstart"
        )
    network, bpe = load_model(exported), load_tokenizer(exported / "tokenizer.json")
    window = json.loads((exported / "config.json").read_text())["window"]
    written = write(network, bpe, prompt, tokens, temperature, seed, window)
    print(prompt + written.text, flush=True)
    print(written.speed, file=sys.stderr)
