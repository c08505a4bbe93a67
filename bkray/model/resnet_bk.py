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
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional as F

from bkray.config import UserError
from bkray.model.arguments import check_tokens
from bkray.model.convolution import causal_convolution
from bkray.model.layers import FeedForward, rms_norm, token_embedding
from bkray.model.spectral import spectral_scan

Tensor = torch.Tensor

TAPS = 4
GATE_MARGIN = 1e-6
"""f^2 stays in [margin, 1 - margin]: the derivatives of sqrt(f^2) and sqrt(1 - f^2) stay finite."""
SHORTEST_MEMORY, LONGEST_MEMORY = 2.0, 256.0
"""Sites; memory lengths start log-uniform between them."""


@dataclass(frozen=True)
class ResNetBKConfig:
    """Sizes: V token ids, width d, layers, and heads (divisors of d) that share a phase projection."""

    vocab_size: int
    d_model: int = 192
    n_layers: int = 4
    n_heads: int = 16

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


class _ForgetGate(torch.autograd.Function):
    """f = sqrt(sigmoid(logits)), f^2 clamped."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        f = logits.sigmoid().clamp_(GATE_MARGIN, 1 - GATE_MARGIN).sqrt_()
        ctx.save_for_backward(f)
        return f

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (f,) = ctx.saved_tensors
        return torch.addcmul(f, f * f, f, value=-1).mul_(g).mul_(0.5)


class _RationalPhase(torch.autograd.Function):
    """cos omega and sin omega from T = tan(omega/2) = head (..., H, 1) * channel (H, d/H)."""

    @staticmethod
    def forward(ctx: Any, head: Tensor, channel: Tensor) -> tuple[Tensor, Tensor]:
        tangent = head * channel
        inverse = torch.addcmul(torch.ones_like(tangent), tangent, tangent).reciprocal_()
        sin = tangent.mul_(inverse).mul_(2)
        cos = inverse.mul_(2).sub_(1)
        ctx.save_for_backward(head, channel, cos, sin)
        return cos, sin

    @staticmethod
    def backward(ctx: Any, g_cos: Tensor, g_sin: Tensor) -> tuple[Tensor, Tensor]:
        head, channel, cos, sin = ctx.saved_tensors
        d_omega = torch.addcmul(cos * g_sin, sin, g_cos, value=-1)
        d_tangent = torch.addcmul(d_omega, d_omega, cos)  # d omega / dT = 2 / (1 + T^2) = 1 + cos omega
        d_head = (d_tangent * channel).sum(-1, keepdim=True)
        return d_head, (d_tangent * head).flatten(0, -3).sum(0)


class SpectralMixer(nn.Module):
    """x (B, N, d) to (B, N, d), causal, O(N); starts as zero.

    `phase` (H, 1, d) and `taps` (d, 1, 4) are shaped as convolution kernels: neither is a matrix to an
    optimizer that treats matrices, parameters of two dimensions, apart.
    """

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        spread = torch.rand(d_model)
        memory = SHORTEST_MEMORY * (LONGEST_MEMORY / SHORTEST_MEMORY) ** spread
        omega = 1.5 * torch.rand(d_model).clamp_min(1e-3) / memory
        self.taps = nn.Parameter(torch.zeros(d_model, 1, TAPS))
        self.forget = nn.Linear(d_model, d_model)
        self.gate = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)
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
        return self._readout(*spectral_scan(*self._gates(z), z), z)

    def step(self, x_Bd: Tensor, state: MixerState, first: bool) -> tuple[Tensor, MixerState]:
        """One site; `first` says that there is none before it."""
        window = torch.cat([state.window, x_Bd.unsqueeze(1)], dim=1)
        z = (window * self.taps[:, 0].T).sum(1)
        f, cos, sin = self._gates(z)
        if first:
            f = torch.zeros_like(f)
        h_re = f * (cos * state.h_re + sin * state.h_im) + (1 - f * f).sqrt() * z
        h_im = f * (cos * state.h_im - sin * state.h_re)
        return self._readout(h_re, h_im, z), MixerState(window[:, 1:], h_re, h_im)

    def _gates(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """f, cos omega and sin omega, shaped as z, in float32 or wider: bfloat16 would blur long memories."""
        with torch.autocast(z.device.type, enabled=False):
            f = _ForgetGate.apply(F.linear(z, self.forget.weight, self.forget.bias))
            head = 2 * F.linear(z, self.phase[:, 0]).sigmoid()
            channel = self.log_tangent.exp().view(head.shape[-1], -1)
            cos, sin = _RationalPhase.apply(head.unsqueeze(-1), channel)
        return f, cos.flatten(-2), sin.flatten(-2)

    def _readout(self, h_re: Tensor, h_im: Tensor, z: Tensor) -> Tensor:
        turned = torch.addcmul(self.psi.cos() * h_re, self.psi.sin(), h_im, value=-1)
        return self.output(turned * F.silu(self.gate(z)))


class Block(nn.Module):
    """x += mixer(RMSNorm(x)); x += feed-forward(RMSNorm(x))."""

    def __init__(self, config: ResNetBKConfig) -> None:
        super().__init__()
        self.mixer = SpectralMixer(config.d_model, config.n_heads)
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
