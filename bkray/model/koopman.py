"""Koopman objective: one linear operator must take every final state to the next.

    h (B, N, d), the normalised final states ─► loss = weight * mean (K h_i - stop_gradient(h_{i+1}))^2

After the learned Koopman embeddings of dynamics (Lusch et al., arXiv 1712.09707). It shapes the states while
training and changes no logit. States have mean square 1, so a loss of `weight` is what K = 0 would give.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

Tensor = torch.Tensor


class Koopman(nn.Module):
    """Hidden states (B, N, d) to nothing: in training mode a call leaves the loss in `auxiliary`.

    K starts as the identity, which says that the state stays.
    """

    def __init__(self, d_model: int, weight: float, warmup: float) -> None:
        super().__init__()
        self.weight, self.warmup = weight, warmup
        self.operator = nn.Linear(d_model, d_model, bias=False)
        nn.init.eye_(self.operator.weight)

    def forward(self, hidden_BNd: Tensor) -> None:
        if self.training and hidden_BNd.shape[1] > 1:
            target = hidden_BNd[:, 1:].detach()
            predicted = self.operator(hidden_BNd[:, :-1]).to(target.dtype)
            self.auxiliary = {"koopman_loss": self.weight * F.mse_loss(predicted, target)}

    def schedule(self, progress: float) -> float:
        """The factor of the weight when the share `progress` of the training is done: a linear rise to 1."""
        return min(1.0, progress / self.warmup) if self.warmup else 1.0
