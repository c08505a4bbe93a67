"""What all our language models are: mixers and feed-forward layers in turn, around one residual stream.

    tokens (B, N) ─► embedding ─► RMSNorm ─► n_layers x [+ mixer, + feed-forward] ─► RMSNorm ─► head

They differ in their mixers (`mixers/`). Decoding carries every mixer's state from token to token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import nn
from torch.nn import functional as F

from bkray.config import UserError
from bkray.model.arguments import check_tokens
from bkray.model.layers import FeedForward, rms_norm, token_embedding

Tensor = torch.Tensor


class Mixer(Protocol):
    """A module x (B, N, d) -> (B, N, d), causal, and the same site by site."""

    def __call__(self, x_BNd: Tensor) -> Tensor: ...

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        """What it remembers before the first site."""
        ...

    def step(
        self, x_Bd: Tensor, state: tuple[Tensor, ...], position: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The output (B, d) of the site at `position`, and what is remembered then."""
        ...


class State(NamedTuple):
    """What decoding carries from token to token: sites seen, and every mixer's memory."""

    position: int
    mixers: tuple[tuple[Tensor, ...], ...]


class Block(nn.Module):
    """x += mixer(RMSNorm(x)); x += feed-forward(RMSNorm(x))."""

    def __init__(self, mixer: Mixer, feed_forward: nn.Module) -> None:
        super().__init__()
        self.mixer, self.feed_forward = mixer, feed_forward

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(rms_norm(x))
        return x + self.feed_forward(rms_norm(x))

    def step(self, x: Tensor, state: tuple[Tensor, ...], position: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        mixed, state = self.mixer.step(rms_norm(x), state, position)
        x = x + mixed
        return x + self.feed_forward(rms_norm(x)), state


class LanguageModel(nn.Module):
    """Token ids (B, N) to next-token logits (B, N, V); UserError for ids outside [0, V) and for no tokens."""

    def __init__(self, vocab_size: int, d_model: int, mixers: Sequence[Mixer]) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.embedding = token_embedding(vocab_size, d_model)
        blocks = nn.ModuleList(Block(mixer, FeedForward(d_model)) for mixer in mixers)
        self.blocks = cast("Sequence[Block]", blocks)

    def forward(self, tokens_BN: Tensor) -> Tensor:
        return self.head(self.hidden(tokens_BN))

    def hidden(self, tokens_BN: Tensor) -> Tensor:
        """The normalised final states (B, N, d): `head` of any slice of them gives that slice's logits."""
        check_tokens(tokens_BN, 2, self.vocab_size)
        x = rms_norm(self.embedding(tokens_BN))
        for block in self.blocks:
            x = block(x)
        return rms_norm(x)

    def auxiliary_losses(self) -> dict[str, Tensor]:
        """What the last forward pass in training mode adds to the loss, by name, weights included.

        Each is given once: modules that have such terms keep them in `auxiliary` until then.
        """
        terms: dict[str, Tensor] = {}
        for module in self.modules():
            for name, term in module.__dict__.pop("auxiliary", {}).items():
                terms[name] = terms[name] + term if name in terms else term
        return terms

    def head(self, hidden: Tensor) -> Tensor:
        """(..., d) to logits (..., V), with the embedding's own matrix."""
        return F.linear(hidden, self.embedding.weight)

    def initial_state(self, batch: int) -> State:
        """The state of `batch` sequences before their first token."""
        return State(0, tuple(block.mixer.initial_state(batch) for block in self.blocks))

    def step(self, tokens_B: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one token a sequence: logits (B, V) for the next, and the new state (the old stays valid)."""
        check_tokens(tokens_B, 1, self.vocab_size)
        x = rms_norm(self.embedding(tokens_B))
        mixers = []
        for block, memory in zip(self.blocks, state.mixers, strict=True):
            x, after = block.step(x, memory, state.position)
            mixers.append(after)
        return self.head(rms_norm(x)), State(state.position + 1, tuple(mixers))


def check_sizes(config: Any, *names: str) -> None:
    """UserError where a size of `config` is below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise UserError(f"{name} must be at least 1, not {getattr(config, name)}")
