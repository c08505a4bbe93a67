"""Structured pruning of feed-forward layers: whole hidden channels go, so the matrices become smaller.

    training windows ─► h = ReLU(W_up x)^2 ─► importance_c = rms(h_c) |W_down_c| ─► keep the most important

The importance is the mean size of what a channel writes into the residual stream: magnitude times activation,
as Wanda weighs single weights (arXiv 2306.11695), for channels (structured, as in arXiv 1608.08710).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bkray.config import UserError
from bkray.model.language_model import LanguageModel
from bkray.model.layers import FeedForward

_BATCH = 16


@torch.no_grad()
def channel_importance(model: nn.Module, tokens_WN: Tensor) -> dict[str, Tensor]:
    """Of every feed-forward layer, by name, the importance (width,) of its channels on these windows.

    Raises UserError where a block's feed-forward layer is none that can be pruned, naming it.
    """
    layers = _layers(model)
    sums = {name: torch.zeros(layer.up.out_features, dtype=torch.float64) for name, layer in layers.items()}

    def add(name: str, inputs: tuple[Tensor, ...]) -> None:
        sums[name] += inputs[0].flatten(0, -2).double().square().sum(0).cpu()

    hooks = [
        layer.down.register_forward_pre_hook(lambda _, inputs, name=name: add(name, inputs))
        for name, layer in layers.items()
    ]
    training = model.training
    try:
        model.eval()
        for batch in tokens_WN.split(_BATCH):
            model(batch)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    sites = tokens_WN.numel()
    return {
        name: (sums[name] / sites).sqrt() * layer.down.weight.double().norm(dim=0).cpu()
        for name, layer in layers.items()
    }


def prune_feed_forward(
    model: nn.Module, tensors: dict[str, Tensor], importance: dict[str, Tensor], share: float
) -> tuple[dict[str, Tensor], int]:
    """`tensors`, the state of `model`, without the least important `share` of every layer's channels.

    Returns it and the width that is left, the same in every layer; channels keep their order.
    Raises UserError where nothing would be left, or nothing would go.
    """
    layers = _layers(model)
    width = next(iter(layers.values())).up.out_features
    left = width - round(share * width)
    if not 0 < left < width:
        raise UserError(
            f"prune:{share:g} leaves {left} of {width} channels: give a share that leaves at least one and "
            "takes at least one"
        )
    result = dict(tensors)
    for name in layers:
        kept = importance[name].topk(left).indices.sort().values
        result[f"{name}.up.weight"] = tensors[f"{name}.up.weight"][kept].contiguous()
        result[f"{name}.down.weight"] = tensors[f"{name}.down.weight"][:, kept].contiguous()
    return result, left


def _layers(model: nn.Module) -> dict[str, FeedForward]:
    if not isinstance(model, LanguageModel):
        raise UserError(
            f"prune takes bkray's own models, whose feed-forward layers it knows, not {type(model).__name__}"
        )
    layers = {}
    for number, block in enumerate(model.blocks):
        if not isinstance(block.feed_forward, FeedForward):
            raise UserError(
                f"prune: blocks.{number}.feed_forward is {type(block.feed_forward).__name__}, which cannot "
                "be pruned"
            )
        layers[f"blocks.{number}.feed_forward"] = block.feed_forward
    return layers
