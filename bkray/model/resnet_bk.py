"""ResNet-BK: a language model whose mixers are causal resolvents of tridiagonal operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bkray.config import UserError
from bkray.config.model import Halting, MixerKind, Multiscale, WindowedAttention, check_stack
from bkray.model.halting import HaltingStack
from bkray.model.language_model import LanguageModel, Mixer, Stack, check_sizes
from bkray.model.mixers import Attention, DiagonalMixer, GatedMixer, PotentialMixer, SpectralMixer
from bkray.model.mixers.spectral import SHORTEST_MEMORY
from bkray.model.multiscale import MultiscaleStack


@dataclass(frozen=True)
class ResNetBKConfig:
    """Sizes: V token ids, width d, layers, and heads, divisors of d.

    Heads share a phase projection (mixer "spectral"), are chains with d/H values each ("potential") or
    features ("diagonal"); "gated", the real gated recurrence, has none. Memory lengths start log-uniform
    between 2 and `longest_memory` sites. `attention` puts windowed softmax attention in the place of some
    layers' mixers. `halting` and `multiscale` leave sites out of some layers.
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

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "d_model", "n_layers", "n_heads")
        if self.d_model % self.n_heads:
            raise UserError(f"d_model {self.d_model} must be a multiple of n_heads {self.n_heads}")
        if not self.longest_memory > SHORTEST_MEMORY:
            raise UserError(f"longest_memory {self.longest_memory} must be above {SHORTEST_MEMORY} sites")
        try:
            check_stack(self.n_layers, self.attention, self.halting, self.multiscale)
        except ValueError as error:
            raise UserError(str(error)) from error


class ResNetBK(LanguageModel):
    def __init__(self, config: ResNetBKConfig) -> None:
        super().__init__(
            config.vocab_size,
            config.d_model,
            [_mixer(config, layer) for layer in range(config.n_layers)],
            _stack(config),
        )
        self.config = config


def _stack(config: ResNetBKConfig) -> Stack | None:
    if config.halting:
        return HaltingStack(config.halting, config.d_model, config.n_layers)
    if config.multiscale:
        return MultiscaleStack(config.multiscale, config.d_model, config.n_layers)
    return None


def _mixer(config: ResNetBKConfig, layer: int) -> Mixer:
    if config.attention and layer in config.attention.layers:
        return Attention(config.d_model, config.attention.n_heads, config.attention.window)
    if config.mixer == "gated":
        return GatedMixer(config.d_model, config.longest_memory)
    kinds: dict[str, Callable[[int, int, float], Mixer]] = {
        "spectral": SpectralMixer,
        "potential": PotentialMixer,
        "diagonal": DiagonalMixer,
    }
    return kinds[config.mixer](config.d_model, config.n_heads, config.longest_memory)
