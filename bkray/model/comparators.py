"""The models that ResNet-BK is compared with: all the same but for their mixers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from bkray.config.model import GRUModel, TransformerModel
from bkray.model.language_model import LanguageModel, check_config
from bkray.model.layers import FeedForward
from bkray.model.mixers import Attention, GRUMixer


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes: V token ids, width d, layers, and heads of an even width d / n_heads."""

    vocab_size: int
    d_model: int = 192
    n_layers: int = 4
    n_heads: int = 4
    feed_forward_width: int | None = None
    """None: 4 d_model."""

    def __post_init__(self) -> None:
        check_config(self, TransformerModel, "transformer")


class Transformer(LanguageModel):
    """Softmax attention as the mixer; its state grows with every token."""

    def __init__(self, config: TransformerConfig) -> None:
        mixers = [Attention(config.d_model, config.n_heads) for _ in range(config.n_layers)]
        feed_forward = partial(FeedForward, width=config.feed_forward_width)
        super().__init__(config.vocab_size, config.d_model, mixers, feed_forward)
        self.config = config


@dataclass(frozen=True)
class GRUConfig:
    """Sizes: V token ids, width d, layers."""

    vocab_size: int
    d_model: int = 192
    n_layers: int = 4
    feed_forward_width: int | None = None
    """None: 4 d_model."""

    def __post_init__(self) -> None:
        check_config(self, GRUModel, "gru")


class GRU(LanguageModel):
    """A gated recurrent unit of width d as the mixer."""

    def __init__(self, config: GRUConfig) -> None:
        mixers = [GRUMixer(config.d_model) for _ in range(config.n_layers)]
        feed_forward = partial(FeedForward, width=config.feed_forward_width)
        super().__init__(config.vocab_size, config.d_model, mixers, feed_forward)
        self.config = config
