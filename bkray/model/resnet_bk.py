"""ResNet-BK: a residual language model whose mixer is the causal resolvent of a tridiagonal operator.

    tokens (B, N) ─► embedding ─► RMSNorm ─► n_layers x [+ SpectralMixer, + FeedForward] ─► RMSNorm ─► head

    SpectralMixer      z = causal convolution of RMSNorm(x), 4 taps
                       f^2 = sigmoid(W_f z + b_f)                   forget gate, a channel
                       tan(omega/2) = t_c 2 sigmoid(w_h . z)        phase: a head's w_h, a channel's t_c
                       h_i = f_i exp(-i omega_i) h_{i-1} + sqrt(1 - f_i^2) z_i
                       y = W_o [Re(exp(i psi_c) h) * SiLU(W_g z)]

Decoding keeps, a layer, the last 3 inputs of the convolution and h: constant in the length of the context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional as F

from bkray.config import UserError
from bkray.model.arguments import check_tokens
from bkray.model.convolution import causal_convolution
from bkray.model.layers import FeedForward, rms_norm, token_embedding
from bkray.model.mixing import forget_gate, rational_phase, readout, real_mixing, spectral_mixing

Tensor = torch.Tensor

TAPS = 4
SHORTEST_MEMORY, LONGEST_MEMORY = 2.0, 256.0
"""Sites; memory lengths start log-uniform between them."""


@dataclass(frozen=True)
class ResNetBKConfig:
    """Sizes: V token ids, width d, layers, and heads (divisors of d) that share a phase projection.

    Without `phases` every omega is 0: a real gated recurrence, the control for what phases bring.
    """

    vocab_size: int
    d_model: int = 192
    n_layers: int = 4
    n_heads: int = 16
    phases: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_layers", "n_heads"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.d_model % self.n_heads:
            raise UserError(f"d_model {self.d_model} must be a multiple of n_heads {self.n_heads}")


class MixerState(NamedTuple):
    """What a mixer remembers: the convolution's last inputs (B, TAPS-1, d), h_re and h_im (B, d)."""

    window: Tensor
    h_re: Tensor
    h_im: Tensor


class State(NamedTuple):
    """What decoding carries from token to token: sites seen, and every layer's memory."""

    position: int
    mixers: tuple[MixerState, ...]


class SpectralMixer(nn.Module):
    """x (B, N, d) to (B, N, d), causal, O(N); starts as zero.

    `phase` (H, 1, d) and `taps` (d, 1, 4) are shaped as convolution kernels: neither is a matrix to an
    optimizer that treats matrices, parameters of two dimensions, apart.
    """

    def __init__(self, d_model: int, n_heads: int, phases: bool = True) -> None:
        super().__init__()
        spread = torch.rand(d_model)
        memory = SHORTEST_MEMORY * (LONGEST_MEMORY / SHORTEST_MEMORY) ** spread
        omega = 1.5 * torch.rand(d_model).clamp_min(1e-3) / memory
        self.taps = nn.Parameter(torch.zeros(d_model, 1, TAPS))
        self.forget = nn.Linear(d_model, d_model)
        self.gate = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)
        self.phases = phases
        if phases:
            self.phase = nn.Parameter(torch.zeros(n_heads, 1, d_model))
            self.log_tangent = nn.Parameter((omega / 2).tan().log())
            self.psi = nn.Parameter(torch.zeros(d_model))
        with torch.no_grad():
            self.taps[:, 0, -1] = 1.0
            self.forget.weight.normal_(std=0.02)
            self.forget.bias.copy_(torch.logit(torch.exp(-2 / memory)))
            self.output.weight.zero_()

    def forward(self, x_BNd: Tensor) -> Tensor:
        z = causal_convolution(x_BNd, self.taps)
        gate = self.gate(z)
        with torch.autocast(z.device.type, enabled=False):
            if not self.phases:
                mixed = real_mixing(z, self.forget(z), gate)
            else:
                mixed = spectral_mixing(z, self.forget(z), gate, *self._phase(z))
        return self.output(mixed)

    def step(self, x_Bd: Tensor, state: MixerState, first: bool) -> tuple[Tensor, MixerState]:
        """One site; `first` says that there is none before it."""
        window = torch.cat([state.window, x_Bd.unsqueeze(1)], dim=1)
        z = (window * self.taps[:, 0].T).sum(1)
        gate = self.gate(z)
        with torch.autocast(z.device.type, enabled=False):
            f = torch.zeros_like(z) if first else forget_gate(self.forget(z))
            h_re, h_im, drive = f * state.h_re, f * state.h_im, (1 - f * f).sqrt() * z
            if not self.phases:
                mixed = h_re = h_re + drive
            else:
                head, tangent, psi = self._phase(z)
                cos, sin = rational_phase(head, tangent)
                h_re, h_im = cos * h_re + sin * h_im + drive, cos * h_im - sin * h_re
                mixed = readout(h_re, h_im, psi)
        return self.output(mixed * F.silu(gate)), MixerState(window[:, 1:], h_re, h_im)

    def _phase(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """2 sigmoid(w_h . z), a head's; t_c and psi_c, a channel's."""
        return 2 * F.linear(z, self.phase[:, 0]).sigmoid(), self.log_tangent.exp(), self.psi


class Block(nn.Module):
    """x += mixer(RMSNorm(x)); x += feed-forward(RMSNorm(x))."""

    def __init__(self, config: ResNetBKConfig) -> None:
        super().__init__()
        self.mixer = SpectralMixer(config.d_model, config.n_heads, config.phases)
        self.feed_forward = FeedForward(config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(rms_norm(x))
        return x + self.feed_forward(rms_norm(x))

    def step(self, x: Tensor, state: MixerState, first: bool) -> tuple[Tensor, MixerState]:
        mixed, state = self.mixer.step(rms_norm(x), state, first)
        x = x + mixed
        return x + self.feed_forward(rms_norm(x)), state


class ResNetBK(nn.Module):
    """Token ids (B, N) to next-token logits (B, N, V); UserError for ids outside [0, V) and for no tokens."""

    def __init__(self, config: ResNetBKConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = token_embedding(config.vocab_size, config.d_model)
        blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.blocks = cast("Sequence[Block]", blocks)

    def forward(self, tokens_BN: Tensor) -> Tensor:
        return self.head(self.hidden(tokens_BN))

    def hidden(self, tokens_BN: Tensor) -> Tensor:
        """The normalised final states (B, N, d): `head` of any slice of them gives that slice's logits."""
        check_tokens(tokens_BN, 2, self.config.vocab_size)
        x = rms_norm(self.embedding(tokens_BN))
        for block in self.blocks:
            x = block(x)
        return rms_norm(x)

    def head(self, hidden: Tensor) -> Tensor:
        """(..., d) to logits (..., V), with the embedding's own matrix."""
        return F.linear(hidden, self.embedding.weight)

    def initial_state(self, batch: int) -> State:
        """The state of `batch` sequences before their first token."""
        window = self.embedding.weight.new_zeros(batch, TAPS - 1, self.config.d_model)
        memory = MixerState(window, torch.zeros_like(window[:, 0]), torch.zeros_like(window[:, 0]))
        return State(0, (memory,) * self.config.n_layers)

    def step(self, tokens_B: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one token a sequence: logits (B, V) for the next, and the new state (the old stays valid)."""
        check_tokens(tokens_B, 1, self.config.vocab_size)
        x = rms_norm(self.embedding(tokens_B))
        mixers = []
        for block, memory in zip(self.blocks, state.mixers, strict=True):
            x, after = block.step(x, memory, state.position == 0)
            mixers.append(after)
        return self.head(rms_norm(x)), State(state.position + 1, tuple(mixers))
