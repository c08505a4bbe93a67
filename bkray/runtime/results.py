"""What a finished run leaves for people: summary.json and report.html, made from its artifacts alone."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bkray.config import dump_yaml
from bkray.corpus import load_tokenizer
from bkray.corpus.windows import read_columns, tokens_array
from bkray.evaluation import rank_correlation
from bkray.reporting import RunLog, RunReport
from bkray.reporting.files import write_atomically
from bkray.reporting.report import write_report
from bkray.runtime.artifacts import Artifact
from bkray.runtime.plan import Plan
from bkray.runtime.stopwatch import noted_seconds
from bkray.training import Ledger

_PACKAGES = ("bkray", "torch", "ray", "numpy", "numba", "pyarrow", "tokenizers", "datasets")
_EXTREMES = 4  # windows shown from either end of the difficulty order

_KINDS = {
    "proxy": "proxy_training",
    "scored": "scoring",
    "soft_targets": "teacher",
    "held_out_scores": "skill",
    "evaluation": "evaluation",
    "forgetting": "evaluation",
    "model": "training_overhead",
}
"""What a stage's seconds are charged to, beyond those that its own ledger holds; the rest is preparation."""


STARTUP = "startup"
"""What a run's commands take outside of its stages, noted in its folder: imports, planning, Ray's start."""


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def write_results(plan: Plan, built: dict[str, Artifact], run: Path) -> dict[str, Any]:
    """Write both files, each whole or not at all, and return the summary."""
    summary = summarise(plan, built, run)
    write_report(run / "report.html", _report(plan, built, run, summary))
    write_atomically(run / "summary.json", json.dumps(summary, indent=2))
    return summary


def has_results(plan: Plan, run: Path) -> bool:
    """Whether both files are there and of this plan; the summary is written last."""
    path = run / "summary.json"
    if not path.exists() or not (run / "report.html").exists():
        return False
    return json.loads(path.read_text()).get("key") == plan.stages["evaluation"].key


def summarise(plan: Plan, built: dict[str, Artifact], run: Path) -> dict[str, Any]:
    """summary.json: held-out quality, baselines, everything that was spent, and what it was run with."""
    ledger, wall = spent(built.values())
    startup = noted_seconds(run / STARTUP)
    ledger.charge(STARTUP, seconds=startup)
    training, test = built["model"].manifest["details"], built["evaluation"].manifest["details"]
    return {
        "name": plan.recipe.name,
        "key": plan.stages["evaluation"].key,
        "held_out": test["held_out"],
        **({"start": test["start"]} if "start" in test else {}),
        "baselines": test["baselines"],
        "ledger": {
            "total_flops": ledger.total_flops,
            "by_kind": ledger.table(),
            "wall_s": wall + startup,
            "tokens_seen": training["tokens"],
            "unique_tokens": training["unique_tokens"],
        },
        **({"given": given} if (given := _given(plan)) else {}),
        **({"skill": skill} if (skill := _skill(built)) else {}),
        **({"pool": _pool(plan, built["forgetting"])} if "forgetting" in built else {}),
        **({"seen_before": _seen_before(plan, built)} if plan.start else {}),
        **({"removed": removed} if (removed := _removed(built)) else {}),
        "steps": training["steps"],
        **{key: training[key] for key in ("divergences", "start_vocabulary") if training.get(key)},
        "world_size": plan.recipe.training.workers,
        "seed": plan.recipe.seed,
        "versions": versions(),
    }


def spent(artifacts: Iterable[Artifact]) -> tuple[Ledger, float]:
    """What stages spent in all, by kind, and their seconds."""
    ledger, wall = Ledger(), 0.0
    for artifact in artifacts:
        manifest = artifact.manifest
        ledger.merge(manifest["ledger"])
        wall += manifest["seconds"]
        rest = manifest["seconds"] - sum(cost["seconds"] for cost in manifest["ledger"].values())
        ledger.charge(_KINDS.get(manifest["stage"], "preparation"), seconds=max(0.0, rest))
    return ledger, wall


def _given(plan: Plan) -> dict[str, dict[str, Any]]:
    """The models that the recipe names, by setting, and what training them took, where they say so.

    It is in the ledgers of their own runs, what prepared their data as well.
    """
    found = {}
    for setting, folder in plan.recipe.given_models.items():
        training = json.loads((Path(folder) / "config.json").read_text()).get("training", {})
        spent_on = [kind["flops"] for kind in training.get("ledger", {}).values()]
        found[setting] = {"folder": folder, "training_flops": sum(spent_on) if spent_on else None}
    return found


def _pool(plan: Plan, forgetting: Artifact) -> dict[str, Any]:
    """Held-out bits per byte on the pool before and after, and how much of the pool was trained on again."""
    details, recipe = forgetting.manifest["details"], plan.recipe
    bits = {when: details[when]["bits_per_byte"] for when in ("before", "after")}
    named = recipe.pool
    assert named
    return {"run": named[1], "split": "test", **bits, "replayed_tokens": recipe.replayed * recipe.window}


def _seen_before(plan: Plan, built: dict[str, Artifact]) -> dict[str, Any]:
    """How many held-out documents the start model is known to have learnt from; `lost` is the model on whose
    text, and on that of what came before it, nobody could look."""
    counted = built["seen_before"].manifest["details"] if "seen_before" in built else {"reasons": {}}
    return {**counted, "lost": str(plan.learnt.lost) if plan.learnt.lost else None}


def _removed(built: dict[str, Artifact]) -> dict[str, dict[str, int]]:
    """Documents that each cleaning stage took out, by reason."""
    names = ("decontaminated", "deduplicated", "filtered", "nearest")
    return {name: built[name].manifest["details"]["reasons"] for name in names if name in built}


def _skill(built: dict[str, Artifact]) -> dict[str, Any]:
    """How every score orders test windows beside the trained model's loss on them; null: a constant score."""
    if "held_out_scores" not in built:
        return {}
    scores = pa.concat_tables(pq.read_table(part) for part in built["held_out_scores"].parts)
    losses = read_columns(built["evaluation"].parts, ["window_id", "nats"])
    nats = dict(zip(*(losses[name].to_pylist() for name in ("window_id", "nats")), strict=True))
    nats_W = np.array([nats[row] for row in scores["window_id"].to_pylist()])
    names = [name for name in scores.column_names if name != "window_id"]
    found = {name: rank_correlation(scores[name].to_numpy(), nats_W) for name in names}
    by_score = {name: value if math.isfinite(value) else None for name, value in found.items()}
    return {"split": "test", "windows": scores.num_rows, "rank_correlation": by_score}


def _report(plan: Plan, built: dict[str, Artifact], run: Path, summary: dict[str, Any]) -> RunReport:
    return RunReport(
        name=plan.recipe.name,
        summary=summary,
        recipe=dump_yaml(plan.recipe),
        metrics=_metrics(plan, run),
        stages=[_stage_row(name, artifact) for name, artifact in built.items()],
        rejects={name: made.manifest["rejects"] for name, made in built.items() if made.manifest["rejects"]},
        augmentation=_augmentation(built),
        notes=_notes(run),
        samples=[tuple(sample) for sample in built["evaluation"].manifest["details"]["samples"]],
        **_difficulty(plan, built),
    )


def _augmentation(built: dict[str, Artifact]) -> list[dict[str, Any]]:
    """What every kind of augmentation made and dropped; an artifact of an older version does not say."""
    return built["augmented"].manifest["details"].get("augmentation", []) if "augmented" in built else []


def _notes(run: Path) -> list[str]:
    """The lines of notes.log, each once: what an interrupted attempt noted may come again."""
    path = run / "notes.log"
    return list(dict.fromkeys(path.read_text(encoding="utf-8").splitlines())) if path.exists() else []


def _metrics(plan: Plan, run: Path) -> list[dict[str, Any]]:
    """The lines of the log; the share of the data is of interest where a curriculum moves it."""
    left_out = set() if plan.recipe.curriculum else {"share"}
    rows = RunLog.read(run / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in left_out} for row in rows]


def _stage_row(name: str, artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    rows = {
        "rows": manifest["rows"],
        "removed": manifest["removed"],
        "rejects": sum(manifest["rejects"].values()),
    }
    return {"name": name, **rows, "seconds": manifest["seconds"]}


def _difficulty(plan: Plan, built: dict[str, Artifact]) -> dict[str, Any]:
    """The distribution of the difficulty, and the text at both of its ends."""
    if plan.recipe.difficulty is None:
        return {}
    parts = built["training_set"].parts
    values = read_columns(parts, ["difficulty"])["difficulty"].to_numpy()
    bpe = load_tokenizer(built["tokenizer"].path / "tokenizer.json")
    ends = []
    for part, rows in ((parts[0], slice(None, _EXTREMES)), (parts[-1], slice(-_EXTREMES, None))):
        table = read_columns([part], ["difficulty", "tokens"])
        texts = bpe.decode_batch(tokens_array(table)[rows, 1:].tolist(), skip_special_tokens=False)
        ends.append([(float(d), t) for d, t in zip(table["difficulty"].to_numpy()[rows], texts, strict=True)])
    return {
        "difficulty": (plan.recipe.difficulty.kind, np.asarray(values)),
        "easiest": ends[0],
        "hardest": ends[1][::-1],
    }
