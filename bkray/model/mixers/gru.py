"""The gated recurrent unit (Cho et al., arXiv 1406.1078), torch's own, as a mixer."""

from __future__ import annotations

import torch
from torch import nn

Tensor = torch.Tensor
State = tuple[Tensor, ...]


class GRUMixer(nn.Module):
    """x (B, N, d) to (B, N, d), causal, one site after the other; starts as zero. Its state: h (1, B, d)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.gru = nn.GRU(d_model, d_model, batch_first=True)
        self.output = nn.Linear(d_model, d_model, bias=False)
        nn.init.zeros_(self.output.weight)

    def forward(self, x_BNd: Tensor) -> Tensor:
        with torch.autocast(x_BNd.device.type, enabled=False):  # as the resolvents' recurrences
            mixed, _ = self.gru(x_BNd.to(self.output.weight.dtype))
        return self.output(mixed)

    def initial_state(self, batch: int) -> State:
        return (self.output.weight.new_zeros(1, batch, self.gru.hidden_size),)

    def step(self, x_Bd: Tensor, state: State, position: int) -> tuple[Tensor, State]:
        mixed, h = self.gru(x_Bd.unsqueeze(1), state[0])
        return self.output(mixed.squeeze(1)), (h,)
