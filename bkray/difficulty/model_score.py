"""Difficulty and uncertainty of windows under a model, all from one forward pass.

    windows (W, N + 1) ─► one window at a time ─► loss and the asked measures: (W,) each

One window at a time keeps the logits at (1, N, V) and makes a window's score independent of its neighbours in the
batch: matrix products of another height may round differently.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from bkray.selection import MEASURES


@torch.no_grad()
def score_windows(model: nn.Module, tokens_WN1: np.ndarray, measures: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Mean `loss` in nats a token, and the named measures of `bkray.selection`: (W,) float32 each.

    Perplexity orders windows as the loss does: it is its exponential.
    """
    model.eval()
    device = next(model.parameters()).device
    scores: dict[str, list[float]] = {name: [] for name in ("loss", *measures)}
    for window in torch.as_tensor(np.ascontiguousarray(tokens_WN1), dtype=torch.int64, device=device):
        log_p_1NV = model(window[None, :-1]).float().log_softmax(-1)
        scores["loss"].append(-log_p_1NV[0].gather(1, window[1:, None]).mean().item())
        for name in measures:
            scores[name].append(MEASURES[name](log_p_1NV).item())
    return {name: np.array(values, dtype=np.float32) for name, values in scores.items()}
