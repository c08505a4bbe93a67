"""ResNet-BK: a language model whose mixers are causal resolvents of tridiagonal operators."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from bkray.config.model import (
    Halting,
    KoopmanObjective,
    MixerKind,
    MixtureOfExperts,
    Multiscale,
    ResNetBKModel,
    SiteSparsity,
    WindowedAttention,
)
from bkray.model.experts import Experts
from bkray.model.halting import HaltingStack
from bkray.model.koopman import Koopman
from bkray.model.language_model import LanguageModel, Mixer, Stack, check_config
from bkray.model.layers import FeedForward
from bkray.model.mixers import ConvolvedAttention, DiagonalMixer, GatedMixer, PotentialMixer, SpectralMixer
from bkray.model.multiscale import MultiscaleStack
from bkray.model.sparsity import SiteGate


@dataclass(frozen=True)
class ResNetBKConfig:
    """Sizes: V token ids, width d, layers, and heads.

    Heads, divisors of d, share a phase projection (mixer "spectral") or are chains with d/H values each
    ("potential"); of "diagonal" they are the features, as many as wanted; "gated", the real gated recurrence,
    has none. Memory lengths start log-uniform between 2 and `longest_memory` sites. `attention` puts windowed
    softmax attention, after a convolution of 4 taps, in the place of some layers' mixers, `experts` a mixture
    of experts in that of every feed-forward layer; `koopman` adds an objective on the final states,
    `sparsity` gates to the mixers; `halting` and `multiscale` leave sites out of some layers.
    """

    vocab_size: int
    d_model: int = 192
    n_layers: int = 4
    n_heads: int = 16
    mixer: MixerKind = "spectral"
    longest_memory: float = 256.0
    attention: WindowedAttention | None = None
    halting: Halting | None = None
    multiscale: Multiscale | None = None
    experts: MixtureOfExperts | None = None
    koopman: KoopmanObjective | None = None
    sparsity: SiteSparsity | None = None
    feed_forward_width: int | None = None
    """None: 4 d_model."""

    def __post_init__(self) -> None:
        check_config(self, ResNetBKModel, "resnet_bk")


class ResNetBK(LanguageModel):
    def __init__(self, config: ResNetBKConfig) -> None:
        mixers = [_mixer(config, layer) for layer in range(config.n_layers)]
        feed_forward = partial(_feed_forward, config)
        super().__init__(config.vocab_size, config.d_model, mixers, feed_forward, _stack(config))
        self.koopman = Koopman(config.d_model, **config.koopman.model_dump()) if config.koopman else None
        self.config = config

    def hidden_from(self, x_BNd: torch.Tensor, layers: int = 0) -> torch.Tensor:
        hidden_BNd = super().hidden_from(x_BNd, layers)
        if self.koopman:
            self.koopman(hidden_BNd)
        return hidden_BNd


def _feed_forward(config: ResNetBKConfig, d_model: int) -> nn.Module:
    if config.experts is None:
        return FeedForward(d_model, config.feed_forward_width)
    count, top_k = config.experts.count, config.experts.top_k
    return Experts(
        d_model, count, top_k, config.experts.width or 4 * d_model // top_k, config.experts.balance
    )


def _stack(config: ResNetBKConfig) -> Stack | None:
    if config.halting:
        return HaltingStack(config.halting, config.d_model, config.n_layers)
    if config.multiscale:
        return MultiscaleStack(config.multiscale, config.d_model, config.n_layers)
    return None


def _mixer(config: ResNetBKConfig, layer: int) -> Mixer:
    d, heads, longest = config.d_model, config.n_heads, config.longest_memory
    if config.attention and layer in config.attention.layers:
        return ConvolvedAttention(d, config.attention.n_heads, config.attention.window)
    sites = SiteGate(d, **config.sparsity.model_dump()) if config.sparsity else None
    match config.mixer:
        case "spectral":
            return SpectralMixer(d, heads, longest, sites)
        case "gated":
            return GatedMixer(d, longest, sites)
        case "potential":
            return PotentialMixer(d, heads, longest)
        case "diagonal":
            return DiagonalMixer(d, heads, longest)
