"""A checkpoint as an exported model, for whatever takes a model's folder: scoring, starting, generating.

<run>/checkpoints/step-00000100/ ─► <run>/exported/step-00000100/
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from bkray.config import UserError, load_recipe
from bkray.corpus import list_shards, load_tokenizer
from bkray.model import build_model
from bkray.runtime.folder import RUN
from bkray.runtime.plan import make_plan
from bkray.training import Checkpointer, export_model
from bkray.training.state.checkpoint import DAMAGE


def export_checkpoint(checkpoint: Path) -> Path:
    """Export the weights of a checkpoint, or their average where the run keeps one; returns the folder.

    Raises UserError where `checkpoint` is none, is damaged, or is not of the run in whose folder it lies.
    """
    checkpoint = checkpoint.absolute()
    run = checkpoint.parents[1]
    if not (run / RUN).exists() or not (checkpoint / "manifest.json").exists():
        raise UserError(
            f"{checkpoint} is no checkpoint of a run: name a folder such as "
            "runs/quickstart/checkpoints/step-00000100"
        )
    recipe = load_recipe(run / RUN)
    stages = make_plan(recipe, list_shards(recipe.corpus), run).stages
    try:
        state = Checkpointer(checkpoint.parent, stages["model"].key).read(checkpoint)
    except UserError:
        raise
    except DAMAGE as error:
        raise UserError(f"{checkpoint} is damaged ({error}): name another one") from error
    tokenizer = stages["tokenizer"].find()
    if not tokenizer:
        raise UserError(f"{run} has lost its tokenizer: run `bkray prepare` with its recipe")
    vocabulary = tokenizer.path / "tokenizer.json"
    size = load_tokenizer(vocabulary).get_vocab_size()
    network = build_model(recipe.model, size)
    network.load_state_dict(_weights(state))
    folder = run / "exported" / checkpoint.name
    export_model(folder, network, recipe, vocabulary, size, {"training": {"steps": state["step"]}})
    return folder


def _weights(state: dict[str, Any]) -> dict[str, Tensor]:
    """Those that the run would have exported at this step."""
    if "average" not in state:
        return state["model"]
    averaged: dict[str, Tensor] = state["average"]
    return {
        name.removeprefix("module."): weights
        for name, weights in averaged.items()
        if name.startswith("module.")
    }
