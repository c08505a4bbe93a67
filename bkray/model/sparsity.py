"""Learned sparsity of BK-Core's sites: a gate decides which of them drive the recurrence.

    s_i = 1 where w . z_i + c > 0, else 0        h_i = f_i exp(-i omega_i) h_{i-1} + sqrt(1 - f_i^2) s_i z_i

A closed site adds nothing; gates and phases stay, so h is still the exact resolvent of the same operator,
applied to a sparse sequence. (Holding the state there instead, f = 1, would take the absorption of the site
to zero, where the resolvent does not exist.) h is linear in s: its derivative by s is exact, and only that of
the step is replaced, by the sigmoid's (straight-through, arXiv 1308.3432). As in arXiv 1712.01312 a penalty
acts on the number of open gates, but without that paper's noise: a gate is the same in training, evaluation
and decoding.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from bkray.model.arguments import at_least_float32

Tensor = torch.Tensor


class SiteGate(nn.Module):
    """z (..., d) to s (..., 1), each site's from that site alone.

    About the share `density` of the sites starts open. In training mode a forward pass leaves the sum of the
    penalty weight * (share of open sites - density)^2.
    """

    def __init__(self, d_model: int, density: float, weight: float) -> None:
        super().__init__()
        self.density, self.weight = density, weight
        self.direction = nn.Parameter(torch.randn(d_model) / d_model**0.5)
        self.bias = nn.Parameter(torch.special.ndtri(torch.tensor([density])))

    def forward(self, z: Tensor) -> Tensor:
        logit = F.linear(z, self.direction.unsqueeze(0), self.bias)
        soft, hard = logit.sigmoid(), (logit > 0).to(logit.dtype)
        gate = hard + (soft - soft.detach())
        if self.training:
            (counted,) = at_least_float32(gate)
            self.site_sums = {"sparsity_loss": (counted.sum(), gate.numel())}
            self.measured = {"density": hard.mean()}
        return gate

    def of_means(self, open_share: Tensor) -> Tensor:
        """The penalty."""
        return self.weight * (open_share - self.density).square()
