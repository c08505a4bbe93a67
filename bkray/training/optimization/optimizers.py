"""Optimizers by name.

matrices ─► Muon          (or AdamW for everything)
embeddings, output head, vectors, scalars ─► AdamW
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bkray.config.training import Training
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

    Weight decay applies to matrices and embeddings, not to vectors and scalars.
    """
    matrices, embeddings, vectors = _split_parameters(model)
    if training.optimizer == "muon" and matrices:
        muon = Muon(matrices, training.lr, training.weight_decay)
        if not embeddings + vectors:  # frozen
            return muon
        return Combined([muon, _adamw([(embeddings, training.weight_decay), (vectors, 0.0)], training.lr)])
    return _adamw([(matrices + embeddings, training.weight_decay), (vectors, 0.0)], training.lr)


def _adamw(groups: list[tuple[list[nn.Parameter], float]], lr: float) -> torch.optim.Optimizer:
    given = [{"params": parameters, "weight_decay": decay} for parameters, decay in groups if parameters]
    return torch.optim.AdamW(given, lr=lr, betas=_BETAS, fused=True)


def _split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """(weights of linear, recurrent and expert layers, other matrices and tables, vectors and scalars).

    The output head, the one linear layer as wide as the vocabulary, counts as a table.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    rows = {m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)}
    linear = {
        id(m.weight) for m in model.modules() if isinstance(m, nn.Linear) and m.out_features not in rows
    } - tables
    linear |= {
        id(p) for m in model.modules() if isinstance(m, nn.RNNBase) for p in m.parameters() if p.ndim == 2
    }
    linear |= {id(p) for m in model.modules() if isinstance(m, Experts) for p in (m.up, m.down)}
    matrices, others, vectors = [], [], []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in linear:
            matrices.append(parameter)
        elif parameter.ndim >= 2:
            others.append(parameter)
        else:
            vectors.append(parameter)
    return matrices, others, vectors
