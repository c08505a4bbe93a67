"""Smaller copies of a finished run's model, each with held-out quality and size before and after.

    run ─► its model ─► layers / prune / int8 / int4 ─► <run>/compressed/<method>/ ─► test split ─► table

A copy is an exported model like the run's own: it can be loaded, generated from and trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from bkray.config import UserError
from bkray.config.loading import parse_section
from bkray.corpus.windows import read_columns, tokens_array
from bkray.model import build_model
from bkray.model.compression import keep_layers, prune_feed_forward, quantize_model, unit_importance
from bkray.reporting.files import write_atomically
from bkray.reporting.progress import Progress
from bkray.runtime.artifacts import Artifact, key_of, write_manifest, writing
from bkray.runtime.cluster import cluster
from bkray.runtime.evaluation import held_out_windows
from bkray.runtime.folder import COMPRESSED, locked
from bkray.runtime.pipeline import finished_run
from bkray.runtime.results import versions
from bkray.training import load_model
from bkray.training.state.export import Exported, unique_tensors, write_export

DEFAULT_METHODS = ("int8", "int4", "prune:0.1")
_GROUP = 64
_IMPORTANCE_WINDOWS = 64  # training windows that channels are weighed on
_FORMAT = 1


@dataclass(frozen=True)
class Method:
    """Keep some layers, prune a share of the feed-forward channels, quantize; each may be left out."""

    name: str
    layers: int | None = None
    prune: float | None = None
    bits: int | None = None
    group: int | None = None

    @property
    def folder(self) -> str:
        return self.name.replace(":", "-")


_ORDER = ("layers", "prune", "bits")


def parse_method(text: str) -> Method:
    """`layers:2`, `prune:0.25`, `int8`, `int4`, `int4:32`, or several of these in this order joined by +."""
    given: dict[str, Any] = {}
    for part in text.split("+"):
        found: dict[str, Any]
        if match := re.fullmatch(r"int(8|4)(?::(32|64))?", part):
            bits = int(match[1])
            if bits == 8 and match[2]:
                raise UserError(f"{text}: int8 has one scale an output channel: leave out :{match[2]}")
            found = {"bits": bits, "group": int(match[2] or _GROUP) if bits == 4 else None}
        elif match := re.fullmatch(r"layers:(\d+)", part):
            found = {"layers": int(match[1])}
        elif match := re.fullmatch(r"prune:(\d*\.?\d+)", part):
            found = {"prune": float(match[1])}
            if not 0 < found["prune"] < 1:
                raise UserError(f"{text}: the share of channels to prune must lie between 0 and 1")
        else:
            raise UserError(
                f"{text!r} is no way to compress: choose from int8, int4, int4:32, prune:SHARE such as "
                "prune:0.25, layers:NUMBER such as layers:2, or several as prune:0.25+int8"
            )
        if any(_ORDER.index(key) >= _ORDER.index(next(iter(found))) for key in given.keys() & set(_ORDER)):
            raise UserError(
                f"{text}: give at most one of each, in this order: layers, a pruning, a quantization"
            )
        given |= found
    return Method(text, **given)


def compress(
    run: Path, methods: tuple[str, ...] = (), cpus: int | None = None, progress: Progress | None = None
) -> Path:
    """Make the copies that are not there yet, print the table; returns the path of compression.json.

    Raises UserError for a folder that is no finished run, and for what cannot be compressed that way.
    """
    progress = progress or Progress()
    chosen = [parse_method(text) for text in dict.fromkeys(methods or DEFAULT_METHODS)]
    plan, built = finished_run(run)
    folder = run / COMPRESSED
    keys = {one.name: key_of(_FORMAT, one.name, plan.stages["evaluation"].key) for one in chosen}
    found = {one.name: Artifact.find(folder / one.folder, keys[one.name]) for one in chosen}
    missing = [one for one in chosen if found[one.name] is None]
    if missing:
        source, parts = built["model"].path, built["training_set"].parts
        # refused before anything is written
        states = {one.name: smaller(one, source, parts) for one in missing}
        with locked(run), cluster(cpus) as there:
            for one in missing:
                with progress.stage(one.name) as line:
                    path, key = folder / one.folder, keys[one.name]
                    artifact = _make(one, *states[one.name], built, path, key, there)
                    found[one.name] = artifact
                    line.result = f"{artifact.manifest['held_out']['bits_per_byte']:.4f} bits per byte"
    before = _row("original", built["model"].path, built["evaluation"].manifest["details"]["held_out"])
    rows = [before]
    for copy in found.values():
        assert copy is not None
        rows.append(_row(copy.manifest["method"], copy.path, copy.manifest["held_out"]))
    progress.console.print(_table(rows))
    write_atomically(folder / "compression.json", json.dumps(rows, indent=2))
    return folder / "compression.json"


def smaller(
    method: Method, source: Path, training_parts: Sequence[Path]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and config.json of the exported model `source`, compressed.

    `training_parts` hold windows that channels are weighed on, where some are pruned. Raises UserError for
    what cannot be compressed that way.
    """
    network = load_model(source)
    tensors = unique_tensors(network)
    config = json.loads((source / "config.json").read_text())
    config = {key: config[key] for key in ("model", "vocab_size", "window")} | {"compression": method.name}
    if method.layers is not None:
        tensors, changes = keep_layers(network, config["model"], tensors, method.layers)
        network = _changed(config, changes)
        network.load_state_dict(tensors, strict=False)  # tied tensors are there once
    if method.prune:
        windows = tokens_array(read_columns(training_parts[:1], ["tokens"]))
        sample = torch.from_numpy(windows[:_IMPORTANCE_WINDOWS, :-1]).long()
        importance = unit_importance(network, sample)
        tensors, changes = prune_feed_forward(network, tensors, importance, method.prune)
        if "experts" in changes:
            changes["experts"] = {**config["model"]["experts"], **changes["experts"]}
        network = _changed(config, changes)
    if method.bits:
        tensors = quantize_model(network, tensors, method.bits, method.group)
    return tensors, config


def _changed(config: dict[str, Any], changes: dict[str, Any]) -> torch.nn.Module:
    """The model, not yet with its weights, that `config` names once these keys of it are others."""
    config["model"] |= changes
    section = parse_section(Exported, {"model": config["model"]}, "compressed").model
    return build_model(section, config["vocab_size"])


def _make(
    method: Method,
    tensors: dict[str, torch.Tensor],
    config: dict[str, Any],
    built: dict[str, Artifact],
    path: Path,
    key: str,
    cpus: int,
) -> Artifact:
    """Write and evaluate one copy; a failed one leaves nothing."""
    with writing(path) as directory:
        write_export(directory / "exported", tensors, built["tokenizer"].path / "tokenizer.json", config)
        for file in (directory / "exported").iterdir():
            file.rename(directory / file.name)
        (directory / "exported").rmdir()
        models, window = {"nats": directory}, config["window"]
        found, _ = held_out_windows(built["windows"], models, directory, "test", window, cpus)
        write_manifest(
            directory,
            {
                "key": key,
                "method": method.name,
                "held_out": found["nats"].as_dict("test"),
                "versions": versions(),
            },
        )
    artifact = Artifact.find(path, key)
    assert artifact is not None
    return artifact


def _row(name: str, model: Path, held_out: dict[str, Any]) -> dict[str, Any]:
    parameters = sum(parameter.numel() for parameter in load_model(model).parameters())
    size = (model / "model.safetensors").stat().st_size
    return {"method": name, "path": str(model), "parameters": parameters, "bytes": size, "held_out": held_out}


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "model", "bits per byte", "change", "MB", "size", "parameters", box=None, header_style="bold"
    )
    original = rows[0]
    for row in rows:
        bits = row["held_out"]["bits_per_byte"]
        table.add_row(
            row["method"],
            f"{bits:.4f}",
            f"{bits / original['held_out']['bits_per_byte'] - 1:+.2%}",
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['bytes'] / original['bytes']:.1%}",
            f"{row['parameters']:,}",
        )
    return table
