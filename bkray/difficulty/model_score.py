"""Difficulty and uncertainty of windows under a model, all from one forward pass.

    windows (W, N + 1) ─► one window at a time ─► loss and the asked measures: (W,) each

One window at a time makes a window's score independent of its neighbours in the batch: matrix products of
another height may round differently.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bkray.selection import MEASURES

_CHUNK = 64  # positions whose logits exist at a time: (64, V) stays in a core's cache


@torch.no_grad()
def score_windows(
    model: nn.Module, tokens_WN1: np.ndarray, measures: Sequence[str] = (), each_token: bool = False
) -> dict[str, np.ndarray]:
    """Mean `loss` in nats a token, and the named measures of `bkray.selection`: (W,) float32 each.

    With `each_token` also `token_loss`, the loss of every target: (W, N) float32, from the same pass.
    A model with `hidden(tokens_BN)` and `head(hidden)` never has the logits of a whole window at once.
    Perplexity orders windows as the loss does: it is its exponential.
    """
    model.eval()
    device = next(model.parameters()).device
    windows = torch.as_tensor(np.ascontiguousarray(tokens_WN1), dtype=torch.int64, device=device)
    scores = np.zeros((1 + len(measures), len(windows)), dtype=np.float32)
    token_losses: list[Tensor] = []
    for column, window in enumerate(windows):
        targets_N = window[1:]
        for logits_nV, targets_n in zip(_logits(model, window[:-1]), targets_N.split(_CHUNK), strict=True):
            share = len(targets_n) / len(targets_N)
            scores[0, column] += share * F.cross_entropy(logits_nV, targets_n).item()
            for row, name in enumerate(measures, start=1):
                scores[row, column] += share * MEASURES[name](logits_nV[None]).item()
            if each_token:
                token_losses.append(F.cross_entropy(logits_nV, targets_n, reduction="none").cpu())
    named = dict(zip(("loss", *measures), scores, strict=True))
    if each_token:
        named["token_loss"] = torch.cat(token_losses).view(len(windows), -1).numpy()
    return named


def _logits(model: nn.Module, tokens_N: Tensor) -> Iterator[Tensor]:
    """The float32 logits of one window, (64, V) at a time."""
    hidden, head = getattr(model, "hidden", None), getattr(model, "head", None)
    if callable(hidden) and callable(head):
        yield from (head(part_1nD)[0].float() for part_1nD in hidden(tokens_N[None]).split(_CHUNK, dim=1))
    else:
        yield from model(tokens_N[None])[0].float().split(_CHUNK)
