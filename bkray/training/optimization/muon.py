"""Muon: momentum, orthogonalised by Newton-Schulz, for matrices (Jordan et al. 2024; arXiv 2502.16982).

torch.optim.Muon iterates in bfloat16, which a CPU without bfloat16 units emulates, many times slower than
float32. This one keeps float32 on the CPU and iterates all matrices of one shape together; a test holds it to
torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bkray.training.parallel.shares import share_of, whole

NEWTON_SCHULZ_STEPS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices_BMN: Tensor, steps: int = NEWTON_SCHULZ_STEPS) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: singular values end in about [0.7, 1.2]."""
    a, b, c = _COEFFICIENTS
    tall = matrices_BMN.size(-2) > matrices_BMN.size(-1)
    x = matrices_BMN.mT if tall else matrices_BMN
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for matrices and stacks of them, (S, M, N).

    Each matrix of a stack is orthogonalised by itself; one that is divided among ranks, by all of them. The
    update is scaled by 0.2 √max(rows, columns), so that its size matches AdamW's and both take one `lr`.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim not in {2, 3}:
                    raise ValueError(
                        f"Muon takes matrices only and stacks of them, not a parameter of shape "
                        f"{tuple(parameter.shape)}"
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape[-2:], []).append(parameter)
            for shape, parameters in by_shape.items():
                self._update(parameters, 0.2 * max(shape) ** 0.5, group)
        return loss

    def _update(self, parameters: list[nn.Parameter], scale: float, group: dict[str, Any]) -> None:
        directions = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter, dtype=torch.float32)
            assert parameter.grad is not None
            gradient, buffer = parameter.grad.float(), state["momentum_buffer"]
            buffer.lerp_(gradient, 1.0 - group["momentum"])
            direction = whole(gradient.lerp(buffer, group["momentum"]))
            directions.append(direction.view(-1, *parameter.shape[-2:]))
        stacked = torch.cat(directions)
        if stacked.is_cuda:
            stacked = stacked.bfloat16()
        updates = orthogonalise(stacked).split([len(direction) for direction in directions])
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
            update = update.view(parameter.shape).to(parameter.dtype)  # noqa: PLW2901
            parameter.add_(share_of(update, parameter), alpha=-group["lr"] * scale)
