"""Starting from a trained model: another run's exported folder gives the weights and the vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from bkray.config import Recipe, UserError
from bkray.config.loading import parse_section
from bkray.config.model import Model
from bkray.training.state.export import Exported, load_model


def check_start(folder: Path, model: Model) -> None:
    """Raise UserError where `folder` holds no exported model, or one of another architecture."""
    there = parse_section(Exported, {"model": _config(folder)["model"]}, f"{folder}/config.json").model
    before, now = there.model_dump(), model.model_dump()
    differing = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if differing:
        shown = ", ".join(
            f"model.{key} is {now.get(key)!r} here and {before.get(key)!r} there" for key in differing
        )
        raise UserError(f"training.start_from {folder} is another model: {shown}: set the recipe's like its")


def load_start(network: nn.Module, folder: Path, model: Model, tokenizer: Path) -> None:
    """Give `network`, built from `model`, the weights of `folder`.

    Raises UserError where its architecture or its tokenizer is another.
    """
    check_start(folder, model)
    if json.loads((folder / "tokenizer.json").read_text()) != json.loads(tokenizer.read_text()):
        raise UserError(
            f"training.start_from {folder} has another vocabulary than {tokenizer}: its embedding would "
            "belong to other tokens; prepare the corpus with its tokenizer"
        )
    network.load_state_dict(load_model(folder).state_dict())


def vocabulary_size(recipe: Recipe) -> int:
    """Token ids at most: the recipe's, or those of the model that it starts from."""
    if recipe.training.start_from:
        return int(_config(Path(recipe.training.start_from))["vocab_size"])
    return recipe.tokenizer.vocab_size


def _config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"training.start_from {folder} holds no exported model ({error}): name the folder model/ of a run"
        ) from None
