"""Optimizers by name.

matrices ─► Muon          (or AdamW for everything)
embeddings, output head, vectors, scalars ─► AdamW

A learning rate is one group of each: one for all, or one more for the embedding (`training.embedding_lr`), or
one a layer (`training.layer_decay`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from bkray.config.training import Training
from bkray.model import LanguageModel
from bkray.model.experts import Experts
from bkray.training.optimization.muon import Muon

_BETAS = (0.9, 0.95)


class Combined(torch.optim.Optimizer):
    """Several optimizers behind one: `param_groups` are theirs, so that a schedule drives them all."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        super().__init__([group for one in optimizers for group in one.param_groups], {})
        self._link()

    def _link(self) -> None:
        self.param_groups = [group for one in self.optimizers for group in one.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        if closure is not None:
            raise ValueError("a closure is not supported: compute the gradients before step()")
        for one in self.optimizers:
            one.step()

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [one.state_dict() for one in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for one, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            one.load_state_dict(state)
        self._link()


def optimizers_of(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """The optimizers that it is made of."""
    return optimizer.optimizers if isinstance(optimizer, Combined) else [optimizer]


def is_muon(group: dict[str, Any]) -> bool:
    """Whether a parameter group is Muon's and not AdamW's."""
    return "momentum" in group


def build_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """AdamW for every parameter, or Muon for the matrices and AdamW for the rest.

    Weight decay applies to matrices and embeddings, not to vectors and scalars. What is frozen for good is
    left out; what `training.unfreeze` frees later is in it, and has no state before its first gradient.
    """
    rates = dict.fromkeys(_tables(model), training.embedding_lr or training.lr)
    if training.layer_decay:
        assert isinstance(model, LanguageModel)  # the recipe refuses others
        rates |= layer_rates(model, training.lr, training.layer_decay, training.embedding_lr)

    def groups(parameters: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
        """One for each learning rate, the highest first."""
        by_rate: dict[float, list[nn.Parameter]] = {}
        for parameter in parameters:
            by_rate.setdefault(rates.get(id(parameter), training.lr), []).append(parameter)
        return [
            {"params": by_rate[rate], "lr": rate, "weight_decay": weight_decay}
            for rate in sorted(by_rate, reverse=True)
        ]

    matrices, embeddings, vectors = _split_parameters(model, frozen_too=training.unfreeze is not None)
    if training.optimizer == "muon" and matrices:
        muon = Muon(groups(matrices, training.weight_decay), training.lr)
        if not embeddings + vectors:  # frozen
            return muon
        return Combined([muon, _adamw(groups(embeddings, training.weight_decay) + groups(vectors, 0.0))])
    return _adamw(groups(matrices + embeddings, training.weight_decay) + groups(vectors, 0.0))


def layer_rates(
    model: LanguageModel, lr: float, decay: float, embedding_lr: float | None = None
) -> dict[int, float]:
    """The learning rate of every layer's parameters, by their id: the lower the layer, the smaller.

    Block i of L, counted from 0, has lr decay^(L - i), the embedding decay^(L + 1) of its own rate, or of
    lr. It is the head too, which has no rate of its own. Discriminative fine-tuning, arXiv 1801.06146.
    """
    layers = len(model.blocks)
    lowest = (embedding_lr or lr) * decay ** (layers + 1)
    rates = {id(parameter): lowest for parameter in model.embedding.parameters()}
    for number, block in enumerate(model.blocks):
        rates |= {id(parameter): lr * decay ** (layers - number) for parameter in block.parameters()}
    return rates


def _adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, betas=_BETAS, fused=True)


def _tables(model: nn.Module) -> set[int]:
    """Ids of the embeddings and of the output head, the last linear layer as wide as one of them has rows.

    bkray's own models have none: their head is the embedding.
    """
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    rows = {embedding.num_embeddings for embedding in embeddings}
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features in rows]
    head = [] if isinstance(model, LanguageModel) else heads[-1:]
    return {id(module.weight) for module in (*embeddings, *head)}


def _split_parameters(
    model: nn.Module, frozen_too: bool
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """(weights of linear, recurrent and expert layers, other matrices and tables, vectors and scalars)."""
    tables = _tables(model)
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)} - tables
    linear |= {
        id(p) for m in model.modules() if isinstance(m, nn.RNNBase) for p in m.parameters() if p.ndim == 2
    }
    linear |= {id(p) for m in model.modules() if isinstance(m, Experts) for p in (m.up, m.down)}
    matrices, others, vectors = [], [], []
    for parameter in model.parameters():
        if not (parameter.requires_grad or frozen_too):
            continue
        if id(parameter) in linear:
            matrices.append(parameter)
        elif parameter.ndim >= 2:
            others.append(parameter)
        else:
            vectors.append(parameter)
    return matrices, others, vectors
