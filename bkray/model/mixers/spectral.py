"""The causal resolvent given by gates and phases, the form of BK-Core that is trained by default.

z = causal convolution of x, 4 taps
f^2 = sigmoid(W_f z + b_f)                   forget gate, a channel
tan(omega/2) = t_c 2 sigmoid(w_h . z)        phase: a head's w_h, a channel's t_c
h_i = f_i exp(-i omega_i) h_{i-1} + sqrt(1 - f_i^2) z_i
y = W_o [Re(exp(i psi_c) h) * SiLU(W_g z)]

With `sites`, a gate of the site, the drive of h_i is sqrt(1 - f_i^2) s_i z_i (`bkray/model/sparsity.py`).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from bkray.model.convolution import CausalConvolution
from bkray.model.mixing import forget_gate, rational_phase, readout, real_mixing, spectral_mixing

Tensor = torch.Tensor
State = tuple[Tensor, ...]

SHORTEST_MEMORY, LONGEST_MEMORY = 2.0, 256.0
"""Sites, between which memory lengths start; the longest where nothing else is said."""


def memory_lengths(count: int, longest: float) -> Tensor:
    """(count,) sites, drawn log-uniform between the shortest and `longest`."""
    return SHORTEST_MEMORY * (longest / SHORTEST_MEMORY) ** torch.rand(count)


class GatedMixer(nn.Module):
    """The real gated recurrence, all phases zero: the control for what phases bring; starts as zero.

    Its state: the last inputs of the convolution (B, 3, d) and h (B, d), whatever the length of the context.
    """

    def __init__(
        self, d_model: int, longest_memory: float = LONGEST_MEMORY, sites: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.sites = sites
        memory = memory_lengths(d_model, longest_memory)
        self.convolution = CausalConvolution(d_model)
        self.forget = nn.Linear(d_model, d_model)
        self.gate = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)
        with torch.no_grad():
            self.forget.weight.normal_(std=0.02)
            self.forget.bias.copy_(torch.logit(torch.exp(-2 / memory)))
            self.output.weight.zero_()

    def forward(self, x_BNd: Tensor) -> Tensor:
        z = self.convolution(x_BNd)
        gate = self.gate(z)
        with torch.autocast(z.device.type, enabled=False):
            mixed = self._mix(z, self._driven(z), self.forget(z), gate)
        return self.output(mixed)

    def _driven(self, z: Tensor) -> Tensor:
        return z if self.sites is None else self.sites(z) * z

    def _mix(self, z: Tensor, driven: Tensor, forget: Tensor, gate: Tensor) -> Tensor:
        return real_mixing(driven, forget, gate)

    def initial_state(self, batch: int) -> State:
        window = self.convolution.initial_state(batch)
        return window, torch.zeros_like(window[:, 0])

    def step(self, x_Bd: Tensor, state: State, position: int | Tensor) -> tuple[Tensor, State]:
        """One site; before the one at position 0 there is none."""
        z, window = self.convolution.step(x_Bd, state[0])
        gate = F.silu(self.gate(z))
        with torch.autocast(z.device.type, enabled=False):
            f = forget_gate(self.forget(z)) * (position > 0)
            mixed, memory = self._advance(z, f, (1 - f * f).sqrt() * self._driven(z), state[1:])
        return self.output(mixed * gate), (window, *memory)

    def _advance(self, z: Tensor, f: Tensor, drive: Tensor, memory: State) -> tuple[Tensor, State]:
        h = f * memory[0] + drive
        return h, (h,)


class SpectralMixer(GatedMixer):
    """x (B, N, d) to (B, N, d), causal, O(N); starts as zero. Its state: as GatedMixer's, h complex.

    `phase` (H, 1, d) is shaped as a convolution kernel, as the taps are: neither is a matrix to an optimizer
    that treats matrices, parameters of two dimensions, apart.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        longest_memory: float = LONGEST_MEMORY,
        sites: nn.Module | None = None,
    ) -> None:
        super().__init__(d_model, longest_memory, sites)
        memory = -2 / F.logsigmoid(self.forget.bias.detach())
        omega = 1.5 * torch.rand(d_model).clamp_min(1e-3) / memory
        self.phase = nn.Parameter(torch.zeros(n_heads, 1, d_model))
        self.log_tangent = nn.Parameter((omega / 2).tan().log())
        self.psi = nn.Parameter(torch.zeros(d_model))

    def _mix(self, z: Tensor, driven: Tensor, forget: Tensor, gate: Tensor) -> Tensor:
        return spectral_mixing(driven, forget, gate, *self._phase(z))

    def initial_state(self, batch: int) -> State:
        window, h = super().initial_state(batch)
        return window, h, torch.zeros_like(h)

    def _advance(self, z: Tensor, f: Tensor, drive: Tensor, memory: State) -> tuple[Tensor, State]:
        head, tangent, psi = self._phase(z)
        cos, sin = rational_phase(head, tangent)
        h_re, h_im = (f * part for part in memory)
        h_re, h_im = cos * h_re + sin * h_im + drive, cos * h_im - sin * h_re
        return readout(h_re, h_im, psi), (h_re, h_im)

    def _phase(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """2 sigmoid(w_h . z), a head's; t_c and psi_c, a channel's."""
        return 2 * F.linear(z, self.phase[:, 0]).sigmoid(), self.log_tangent.exp(), self.psi
