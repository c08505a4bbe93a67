"""Token selection: all tokens are read, those with the most to learn give the gradient (arXiv 2404.07965).

    final states (M, d) ─► head, chunk by chunk ─► losses (M,) ─► excess over the reference ─► K largest
             ▲                                                                                    │
             └──── backward pass of the head, its logits computed again ◄──── gradient of K rows ◄┘

What is saved is the backward pass of the head for the tokens that are left out: the body below it works for
all of them. Logits (M, V) never exist as a whole, neither way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bkray.config.savings import TokenSelection
from bkray.corpus.schema import row_rng
from bkray.training.parallel.world import World

CHUNK = 256
"""Rows whose logits exist at a time."""


class TokenSelector:
    """Losses of this rank's tokens to losses of the same values, whose mean has another gradient.

    It is that of the mean over the kept tokens of all ranks: exactly the share `keep` of the global batch, by
    the loss above the reference or drawn at random by (seed, step); ties go to the first. So the same tokens
    are kept whatever the number of ranks, and the logged loss stays that of all tokens.
    """

    def __init__(self, settings: TokenSelection, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.kept_loss = 0.0
        """Mean loss of the kept tokens of this rank's last batch, nats; nan where there were none."""

    def __call__(self, losses_BN: Tensor, reference_BN: Tensor | None, step: int) -> Tensor:
        world, values_BN = World.current(), losses_BN.detach()
        if self.settings.kind == "random":
            drawn = row_rng(self.seed, "token_selection", step).random(losses_BN.numel() * world.size)
            scores_T = torch.from_numpy(drawn).to(losses_BN.device)
        else:
            if reference_BN is None:
                raise ValueError("token_selection reducible needs the reference losses of the windows")
            scores_T = torch.cat(world.gather((values_BN - reference_BN).flatten()))
        kept_T = largest(scores_T, self.settings.keep)
        kept_BN = kept_T.view(world.size, -1)[world.rank].view_as(losses_BN)
        self.kept_loss = float(values_BN[kept_BN].mean())
        weight = len(kept_T) / int(kept_T.sum())
        return values_BN + (losses_BN - values_BN) * (weight * kept_BN)


def largest(scores_T: Tensor, share: float) -> Tensor:
    """(T,) bool: exactly round(share x T) of the scores, at least 1: the largest, the first among equals."""
    kept = max(1, round(share * len(scores_T)))
    mask = torch.zeros_like(scores_T, dtype=torch.bool)
    mask[scores_T.argsort(descending=True, stable=True)[:kept]] = True
    return mask


def head_losses(hidden: Tensor, weight_Vd: Tensor, targets_M: Tensor) -> Tensor:
    """Cross-entropies (M,), float32, of the logits of final states (…, d), M of them, and the head's matrix.

    Rows whose gradient is zero are left out of the backward pass. Products are in autocast's precision.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight_Vd = hidden.to(dtype), weight_Vd.to(dtype)
    losses_M: Tensor = _HeadLosses.apply(hidden.flatten(0, -2), weight_Vd, targets_M)
    return losses_M


class _HeadLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_Md: Tensor, weight_Vd: Tensor, targets_M: Tensor) -> Tensor:
        sums, chosen = [], []
        for hidden, targets in zip(hidden_Md.split(CHUNK), targets_M.split(CHUNK), strict=True):
            logits = F.linear(hidden, weight_Vd).float()
            sums.append(logits.logsumexp(-1))
            chosen.append(logits.gather(1, targets.unsqueeze(1)).squeeze(1))
        sums_M = torch.cat(sums)
        ctx.save_for_backward(hidden_Md, weight_Vd, targets_M, sums_M)
        return sums_M - torch.cat(chosen)

    @staticmethod
    def backward(ctx: Any, gradient_M: Tensor) -> tuple[Tensor, Tensor | None, None]:
        hidden_Md, weight_Vd, targets_M, sums_M = ctx.saved_tensors
        to_hidden = torch.zeros_like(hidden_Md)
        to_weight = torch.zeros_like(weight_Vd, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for rows in gradient_M.nonzero().squeeze(1).split(CHUNK):
            hidden = hidden_Md[rows]
            to_logits = (F.linear(hidden, weight_Vd).float() - sums_M[rows].unsqueeze(1)).exp_()
            to_logits[torch.arange(len(rows), device=rows.device), targets_M[rows]] -= 1
            to_logits = to_logits.mul_(gradient_M[rows].unsqueeze(1)).to(weight_Vd.dtype)
            to_hidden[rows] = to_logits @ weight_Vd
            if to_weight is not None:
                to_weight += to_logits.T @ hidden
        return to_hidden, to_weight if to_weight is None else to_weight.to(weight_Vd.dtype), None
