"""The pool: what a finished run was trained and evaluated on, for a run that starts from what it learnt.

folder of a run ─► model/manifest.json ─► keys of its training set and windows ─► their artifacts
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from bkray.config import Recipe, UserError
from bkray.runtime.artifacts import Artifact


@dataclass(frozen=True)
class Pool:
    training_set: Artifact
    """The windows that its model was trained on."""
    windows: Artifact
    """All windows, the held-out ones among them."""


def find_pool(recipe: Recipe) -> Pool | None:
    """The pool that the recipe names, if it does.

    Raises UserError where the folder holds no finished run, has lost its windows, or where they are of
    another length or vocabulary than those of this run.
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
    found = {}
    for name, key in keys.items():
        path = run / "artifacts" / f"{name}-{key}"
        if not (artifact := Artifact.find(path, key)):
            raise UserError(f"{setting} {folder} has lost its windows, {path} is not there: run it again")
        found[name] = artifact
    if window != recipe.window:
        raise UserError(
            f"{setting} {folder} has windows of {window}, window is {recipe.window}: set it alike"
        )
    _check_vocabulary(setting, run, Path(str(recipe.training.start_from)))
    return Pool(**found)


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
