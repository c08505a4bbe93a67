"""Uncertainty of a model on a window: pure functions of its logits.

    logits (B, N, V), targets (B, N) ─► score (B,): the mean over the real positions, in nats
    hidden states ─► T thinned copies ─► head ─► T most likely tokens a position ─► variation ratio (B,)

Higher is more uncertain for every measure, so that selection always keeps the largest scores. Positions whose
target is `IGNORED` are padding and do not count. Sources: Settles, Active Learning Literature Survey (2009);
variation ratio: Freeman, Elementary Applied Statistics (1965), over dropout passes Gal and Ghahramani
(arXiv 1506.02142), with dropout before the last layer alone Ovadia et al. (arXiv 1906.02530), with the same
masks for the whole pool Kirsch et al. (arXiv 1906.08158).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

IGNORED = -100  # torch's default ignore_index


def entropy(logits_BNV: Tensor, targets_BN: Tensor | None = None) -> Tensor:
    """Mean predictive entropy, Σ −p ln p, in nats: (B,). A token of probability 0 adds nothing."""
    # −Σ p ln p = ln Σ eˣ − Σ x eˣ / Σ eˣ, for logits x less their maximum: one exponential an entry.
    # A logit of −inf becomes the lowest number, for 0 x −inf would be NaN.
    shifted_BNV = logits_BNV.float() - logits_BNV.amax(-1, keepdim=True)
    shifted_BNV.clamp_(min=torch.finfo(torch.float32).min)
    weights_BNV = shifted_BNV.exp()
    total_BN = weights_BNV.sum(-1)
    return _mean(total_BN.log() - weights_BNV.mul_(shifted_BNV).sum(-1) / total_BN, targets_BN)


def margin(logits_BNV: Tensor, targets_BN: Tensor | None = None) -> Tensor:
    """Minus the mean log-ratio of best to second best token (breaking ties), nats: (B,), at most 0."""
    best_BN2 = logits_BNV.float().topk(2, dim=-1).values
    return _mean(best_BN2[..., 1] - best_BN2[..., 0], targets_BN)


def least_confidence(logits_BNV: Tensor, targets_BN: Tensor | None = None) -> Tensor:
    """Mean surprisal of the most likely token, −ln max p, in nats: (B,)."""
    logits_BNV = logits_BNV.float()
    return _mean(logits_BNV.logsumexp(-1) - logits_BNV.amax(-1), targets_BN)


def variation_ratio(votes_TBN: Tensor, targets_BN: Tensor | None = None) -> Tensor:
    """Mean share of the T passes that name another token than most of them do: (B,), from 0 to below 1.

    votes: the most likely token of every pass at every position. A share, not nats.
    """
    agreeing_TBN = (votes_TBN.unsqueeze(0) == votes_TBN.unsqueeze(1)).sum(0)
    return _mean(1.0 - agreeing_TBN.amax(0) / len(votes_TBN), targets_BN)


def dropout_masks(passes: int, width: int, rate: float, seed: int) -> Tensor:
    """The masks (T, D) of as many thinned copies of a model's final states: 0 or 1 / (1 - rate), float32.

    They are the same for every window and position, so that a window's score depends on it alone.
    """
    generator = torch.Generator().manual_seed(seed)
    kept_TD = torch.rand(passes, width, generator=generator) >= rate
    return kept_TD / (1.0 - rate)


def _mean(values_BN: Tensor, targets_BN: Tensor | None) -> Tensor:
    if targets_BN is None:
        return values_BN.mean(-1)
    real_BN = targets_BN != IGNORED
    return torch.where(real_BN, values_BN, 0.0).sum(-1) / real_BN.sum(-1).clamp(min=1)


MEASURES: dict[str, Callable[..., Tensor]] = {
    "entropy": entropy,
    "margin": margin,
    "least_confidence": least_confidence,
}
