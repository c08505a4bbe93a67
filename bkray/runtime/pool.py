"""The pool: what a finished run was trained and evaluated on, for a run that starts from what it learnt.

folder of a run ─► model/manifest.json ─► keys of its training set and windows ─► their artifacts
                            └─► the model it started from, the run it replayed, and those before them
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from bkray.config import Recipe, UserError
from bkray.runtime.artifacts import Artifact
from bkray.runtime.folder import COMPRESSED


@dataclass(frozen=True)
class Pool:
    training_set: Artifact
    """The windows that its model was trained on."""
    windows: Artifact
    """All windows, the held-out ones among them."""


@dataclass(frozen=True)
class Learnt:
    """The text that models and those before them were trained on, as far as it is still there."""

    documents: tuple[Artifact, ...] = ()
    """Of each run, those of the named models first."""
    lost: Path | None = None
    """The first model beside which there is no text of its run; of what came before it nothing is known."""


def find_learnt(*models: Path) -> Learnt:
    """What the exported `models` learnt from: in their runs, in what these started from or replayed, and so
    on."""
    found: list[Artifact] = []
    lost: Path | None = None
    waiting, known = list(models), set[Path]()
    while waiting:
        model = waiting.pop(0)
        if model in known:
            continue
        known.add(model)
        try:
            manifest = json.loads((model / "manifest.json").read_text())
            windows = _artifact(model.parent, "windows", manifest["inputs"]["windows"])
            name, key = next(iter(windows.manifest["inputs"].items()))
            documents = _artifact(model.parent, name, key)
            training = manifest["configuration"]["training"]
            before = models_before(training["start_from"], (training["replay"] or {}).get("run"))
        except (OSError, ValueError, KeyError):
            lost = lost or model
            continue
        found.append(documents)
        waiting += before
    return Learnt(tuple(found), lost)


def models_before(start_from: str | None, replayed_run: str | None) -> list[Path]:
    """The exported models whose text a run learns from beside its own, by what its recipe names.

    In place of a compressed copy it is the one that it was made of.
    """
    named = [start_from and Path(start_from), replayed_run and Path(replayed_run) / "model"]
    return [_original(folder.absolute()) for folder in named if folder]


def _original(model: Path) -> Path:
    original = model.parents[1] / "model"
    return original if model.parent.name == COMPRESSED and original.exists() else model


def find_pool(recipe: Recipe, start_is_there: bool = True) -> Pool | None:
    """The pool that the recipe names, if it does.

    Raises UserError where the folder holds no finished run, has lost its windows, or where they are of
    another length or, where the start model is there already, vocabulary than those of this run.
    """
    if not recipe.pool:
        return None
    setting, folder = recipe.pool
    run = Path(folder).absolute()
    try:
        manifest = json.loads((run / "model" / "manifest.json").read_text())
        window = manifest["configuration"]["window"]
        keys = {name: manifest["inputs"][name] for name in ("training_set", "windows")}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{setting} {folder} holds no finished run ({error}): name the folder that holds its model/ and "
            "artifacts/"
        ) from None
    try:
        found = {name: _artifact(run, name, key) for name, key in keys.items()}
    except FileNotFoundError as error:
        raise UserError(
            f"{setting} {folder} has lost its windows, {error} is not there: run it again"
        ) from None
    check_window(setting, folder, window, recipe.window)
    if start_is_there:
        _check_vocabulary(setting, run, Path(str(recipe.training.start_from)))
    return Pool(**found)


def check_window(setting: str, folder: str, there: int, here: int) -> None:
    """Raise UserError where the windows of a pool are of another length than those of this run."""
    if there != here:
        raise UserError(f"{setting} {folder} has windows of {there}, window is {here}: set it alike")


def _artifact(run: Path, name: str, key: str) -> Artifact:
    """The artifact of a stage of the run; raises FileNotFoundError, which names its path, without one."""
    path = run / "artifacts" / f"{name}-{key}"
    if not (artifact := Artifact.find(path, key)):
        raise FileNotFoundError(path)
    return artifact


def _check_vocabulary(setting: str, run: Path, start: Path) -> None:
    """The corpus gets the tokenizer of the start model: that of the pool's windows must be the same."""
    try:
        read = [json.loads((folder / "tokenizer.json").read_text()) for folder in (run / "model", start)]
    except (OSError, ValueError) as error:
        raise UserError(f"{setting} and training.start_from need a tokenizer.json each ({error})") from None
    if read[0] != read[1]:
        sizes = [len(tokenizer.get("model", {}).get("vocab", ())) for tokenizer in read]
        raise UserError(
            f"{setting} {run} has another vocabulary ({sizes[0]} tokens) than training.start_from {start} "
            f"({sizes[1]}): name the run that the model, or the one that it started from, was trained in"
        )
