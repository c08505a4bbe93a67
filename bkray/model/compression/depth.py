"""Fewer layers: some blocks of a trained model as a shallower one, the start of a student.

DistilBERT starts from every second layer of its teacher (arXiv 1910.01108). By itself such a copy predicts
badly; trained on, it gets to where a model from scratch gets for a fraction of the cost.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bkray.config import UserError
from bkray.config.model import ResNetBKModel
from bkray.model.language_model import LanguageModel

ONLY_MIXERS = ("mixer", "n_heads", "longest_memory", "sparsity")
"""Keys of the model that mean nothing to a layer of attention."""


def keep_layers(
    model: nn.Module, section: dict[str, Any], tensors: dict[str, Tensor], count: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`tensors`, the state of `model`, with `count` of its blocks: the first, the last, and evenly between.

    Returns it and the keys of `section`, the model's, that change. Raises UserError where no layer would go,
    and for models of which layers have duties of their own.
    """
    if not isinstance(model, LanguageModel):
        raise UserError(f"layers takes bkray's own models, whose layers it knows, not {type(model).__name__}")
    there = len(model.blocks)
    if there == 1:
        raise UserError(f"layers:{count}: the model has a single layer, and none can go")
    if not 1 <= count < there:
        raise UserError(f"layers:{count} of {there}: give a number from 1 to {there - 1}")
    for key in ("halting", "multiscale"):
        if section.get(key):
            raise UserError(f"layers cannot take model.{key}, which says what its layers do by their numbers")
    kept = [round(place * (there - 1) / max(1, count - 1)) for place in range(count)]
    names = {f"blocks.{number}.": f"blocks.{place}." for place, number in enumerate(kept)}
    result = {}
    for name, tensor in tensors.items():
        block = ".".join(name.split(".")[:2]) + "."
        if not name.startswith("blocks."):
            result[name] = tensor
        elif block in names:
            result[names[block] + name.removeprefix(block)] = tensor
    changes: dict[str, Any] = {"n_layers": count}
    if attention := section.get("attention"):
        layers = [place for place, number in enumerate(kept) if number in attention["layers"]]
        changes["attention"] = {**attention, "layers": layers} if layers else None
        if len(layers) == count:  # what says how the other layers mix is left without effect
            changes |= {key: ResNetBKModel.model_fields[key].default for key in ONLY_MIXERS}
    return result, changes
