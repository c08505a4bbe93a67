"""The causal resolvent from a learned potential: the forward form of BK-Core, and its bare diagonal.

    z = causal convolution of x, 4 taps
    v = W_v z                                    potential, a head
    eta = softplus(W_eta z + b_eta) + eta_min    absorption, a head; couplings b_h are learned constants
    PotentialMixer    Y = Ward-normalised causal resolvent times W_x z
                      y = W_o [Re(exp(i psi) Y) * SiLU(W_g z)]
    DiagonalMixer     L = last diagonal element of the leading block
                      y = W_o [sqrt(eta / Im L) L]

Noise in v localises the operator, so memories are shorter than those of the spectral form. Values are not
checked here, as with the other mixers: where training diverges, its loss shows it on every worker.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from bkray.config.model import ETA_MIN
from bkray.model.convolution import CausalConvolution
from bkray.model.mixers.spectral import LONGEST_MEMORY, memory_lengths
from bkray.model.mixing import readout
from bkray.model.resolvent import resolvent_diagonal, resolvent_mix

Tensor = torch.Tensor
State = tuple[Tensor, ...]


class Operator(nn.Module):
    """z (B, N, d) to the potential and absorption (B, N, H), and couplings (H,), of H chains.

    It starts near the free chain, v = 0 and b = 1, where an absorption eta forgets in about 2 / eta sites.
    """

    def __init__(self, d_model: int, n_heads: int, longest_memory: float = LONGEST_MEMORY) -> None:
        super().__init__()
        self.potential = nn.Parameter(0.02 * torch.randn(n_heads, 1, d_model))
        self.absorption = nn.Parameter(0.02 * torch.randn(n_heads, 1, d_model))
        eta = 2 / memory_lengths(n_heads, longest_memory) - ETA_MIN
        self.absorption_bias = nn.Parameter(eta.expm1().log())
        self.coupling = nn.Parameter(torch.ones(n_heads))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        v = F.linear(z, self.potential[:, 0])
        eta = F.softplus(F.linear(z, self.absorption[:, 0], self.absorption_bias)) + ETA_MIN
        return v, self.coupling, eta

    def advance(self, z_Bd: Tensor, left: Tensor, position: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One site: L (B, H) after the last one `left`, D = Im(L) / |L|^2, and eta."""
        v, b, eta = self(z_Bd)
        p = b * b * (position > 0)
        d = eta + p * left.imag
        return 1 / torch.complex(v - p * left.real, -d), d, eta


class PotentialMixer(nn.Module):
    """x (B, N, d) to (B, N, d), causal, O(N); starts as zero.

    Its state: the last inputs of the convolution (B, 3, d), L (B, H) and Y (B, H, d/H), both complex.
    """

    def __init__(self, d_model: int, n_heads: int, longest_memory: float = LONGEST_MEMORY) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.convolution = CausalConvolution(d_model)
        self.operator = Operator(d_model, n_heads, longest_memory)
        self.value, self.gate, self.output = (nn.Linear(d_model, d_model, bias=False) for _ in range(3))
        self.psi = nn.Parameter(torch.zeros(d_model))
        nn.init.zeros_(self.output.weight)

    def forward(self, x_BNd: Tensor) -> Tensor:
        z = self.convolution(x_BNd)
        value, gate = self.value(z).unflatten(-1, (self.n_heads, -1)), self.gate(z)
        with torch.autocast(z.device.type, enabled=False):
            v, b, eta = self.operator(z)
            mixed = resolvent_mix(v, b, eta, value, check=False).flatten(-2)
            mixed = readout(mixed.real, mixed.imag, self.psi)
        return self.output(mixed * F.silu(gate))

    def initial_state(self, batch: int) -> State:
        window = self.convolution.initial_state(batch)
        mixed = torch.zeros_like(window[:, 0], dtype=window.dtype.to_complex())
        mixed = mixed.unflatten(-1, (self.n_heads, -1))
        return window, mixed[..., 0], mixed

    def step(self, x_Bd: Tensor, state: State, position: int | Tensor) -> tuple[Tensor, State]:
        window, before, mixed = state
        z, window = self.convolution.step(x_Bd, window)
        value, gate = self.value(z).unflatten(-1, (self.n_heads, -1)), self.gate(z)
        with torch.autocast(z.device.type, enabled=False):
            left, d, eta = self.operator.advance(z, before, position)
            forget = self.operator.coupling * (before.imag / d).sqrt()
            driven = (eta / d).sqrt().unsqueeze(-1) * value - forget.unsqueeze(-1) * mixed
            mixed = (left / left.abs()).unsqueeze(-1) * driven
            flat = mixed.flatten(-2)
            read = readout(flat.real, flat.imag, self.psi)
        return self.output(read * F.silu(gate)), (window, left, mixed)


class DiagonalMixer(nn.Module):
    """x (B, N, d) to (B, N, d), causal, O(N); starts as zero. L alone, Ward-normalised, as 2 H features.

    Its state: the last inputs of the convolution (B, 3, d) and L (B, H), complex.
    """

    def __init__(self, d_model: int, n_heads: int, longest_memory: float = LONGEST_MEMORY) -> None:
        super().__init__()
        self.convolution = CausalConvolution(d_model)
        self.operator = Operator(d_model, n_heads, longest_memory)
        self.output = nn.Linear(2 * n_heads, d_model, bias=False)
        nn.init.zeros_(self.output.weight)

    def forward(self, x_BNd: Tensor) -> Tensor:
        z = self.convolution(x_BNd)
        with torch.autocast(z.device.type, enabled=False):
            v, b, eta = self.operator(z)
            features = _features(resolvent_diagonal(v, b, eta, check=False), eta)
        return self.output(features)

    def initial_state(self, batch: int) -> State:
        window = self.convolution.initial_state(batch)
        heads = self.operator.coupling.shape[0]
        return window, torch.zeros(batch, heads, dtype=window.dtype.to_complex(), device=window.device)

    def step(self, x_Bd: Tensor, state: State, position: int | Tensor) -> tuple[Tensor, State]:
        z, window = self.convolution.step(x_Bd, state[0])
        with torch.autocast(z.device.type, enabled=False):
            left, _, eta = self.operator.advance(z, state[1], position)
            features = _features(left, eta)
        return self.output(features), (window, left)


def _features(left: Tensor, eta: Tensor) -> Tensor:
    """sqrt(eta / Im L) L, of modulus at most 1, as real and imaginary parts (..., 2 H)."""
    normalised = (eta / left.imag).sqrt() * left
    return torch.cat([normalised.real, normalised.imag], dim=-1)
