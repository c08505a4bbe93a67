"""Structured pruning of feed-forward layers: whole channels or experts go, so the model becomes smaller.

    training windows ─► h = ReLU(W_up x)^2 ─► channel c: rms(h_c) |W_down_c| ──┐
                     └► router p ─► expert e: mean of p_e where it is chosen ──┴─► keep the most important

A channel's importance is the mean size of what it writes into the residual stream: magnitude times
activation, as Wanda weighs single weights (arXiv 2306.11695), for channels (as in arXiv 1608.08710).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bkray.config import UserError
from bkray.config.model import MixtureOfExperts
from bkray.model.experts import Experts
from bkray.model.language_model import LanguageModel
from bkray.model.layers import FeedForward

_BATCH = 16


@torch.no_grad()
def unit_importance(model: nn.Module, tokens_WN: Tensor) -> dict[str, Tensor]:
    """Of every feed-forward layer, by name, the importance of its channels, or experts, on these windows.

    Sites that halted before a layer write nothing there.
    Raises UserError where a block's feed-forward layer is none that can be pruned, naming it.
    """
    layers = _layers(model)
    sums = {name: torch.zeros(_units(layer), dtype=torch.float64) for name, layer in layers.items()}
    there: dict[str, Tensor] = {}  # which rows of a layer are sites: halting pads with zeros

    def enter(name: str, x: Tensor) -> None:
        there[name] = x.any(-1)

    def add(name: str, layer: nn.Module, x: Tensor) -> None:
        sums[name] += _seen(layer, x[there[name]]).double().sum(0).cpu()

    hooks = []
    for name, layer in layers.items():
        block = model.get_submodule(name.rpartition(".")[0])
        hooks += [
            block.register_forward_pre_hook(lambda _, inputs, name=name: enter(name, inputs[0])),
            layer.register_forward_pre_hook(lambda module, inputs, name=name: add(name, module, inputs[0])),
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
    means = {name: sums[name] / tokens_WN.numel() for name in layers}
    return {
        name: means[name].sqrt() * layer.down.weight.double().norm(dim=0).cpu()
        if isinstance(layer, FeedForward)
        else means[name]
        for name, layer in layers.items()
    }


def prune_feed_forward(
    model: nn.Module, tensors: dict[str, Tensor], importance: dict[str, Tensor], share: float
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`tensors`, the state of `model`, without the least important `share` of its channels or experts.

    Returns it and the keys of the model's section that change; what is left keeps its order and is as many in
    every layer. Raises UserError where too little would be left, or nothing would go.
    """
    layers = _layers(model)
    first = next(iter(layers.values()))
    count, what = _units(first), "experts" if isinstance(first, Experts) else "channels"
    left = count - round(share * count)
    least = max(2, first.top_k) if isinstance(first, Experts) else 1
    if not least <= left < count:
        raise UserError(
            f"prune:{share:g} leaves {left} of {count} {what}: give a share that leaves at least {least} and "
            "takes at least one"
        )
    result = dict(tensors)
    for name, layer in layers.items():
        kept = importance[name].topk(left).indices.sort().values
        if isinstance(layer, Experts):
            for part in ("router.weight", "up", "down"):
                result[f"{name}.{part}"] = tensors[f"{name}.{part}"][kept].contiguous()
        else:
            result[f"{name}.up.weight"] = tensors[f"{name}.up.weight"][kept].contiguous()
            result[f"{name}.down.weight"] = tensors[f"{name}.down.weight"][:, kept].contiguous()
    if isinstance(first, Experts):
        changed: dict[str, Any] = {"count": left, "width": first.up.shape[2]}
        if left == first.top_k:  # with every expert chosen there is nothing to balance
            changed["balance"] = MixtureOfExperts.model_fields["balance"].default
        return result, {"experts": changed}
    return result, {"feed_forward_width": left}


def _units(layer: FeedForward | Experts) -> int:
    return layer.up.shape[0] if isinstance(layer, Experts) else layer.up.out_features


def _seen(layer: nn.Module, x_Td: Tensor) -> Tensor:
    """(T, units): the squared activations of the channels, or the probabilities of the experts chosen."""
    if isinstance(layer, Experts):
        p_TE = layer.router(x_Td).softmax(-1)
        chosen = p_TE.topk(layer.top_k)
        return torch.zeros_like(p_TE).scatter(1, chosen.indices, chosen.values)
    assert isinstance(layer, FeedForward)
    return F.relu(layer.up(x_Td)).pow(4)


def _layers(model: nn.Module) -> dict[str, FeedForward | Experts]:
    if not isinstance(model, LanguageModel):
        raise UserError(
            f"prune takes bkray's own models, whose feed-forward layers it knows, not {type(model).__name__}"
        )
    layers = {}
    for number, block in enumerate(model.blocks):
        if not isinstance(block.feed_forward, FeedForward | Experts):
            raise UserError(
                f"prune: blocks.{number}.feed_forward is {type(block.feed_forward).__name__}, which cannot "
                "be pruned"
            )
        layers[f"blocks.{number}.feed_forward"] = block.feed_forward
    return layers
