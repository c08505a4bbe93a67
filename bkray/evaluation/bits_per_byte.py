"""The loss of a model on held-out windows, in nats a window and in bits per byte.

    tokens_BN1 ─► hidden_BND ─► one window's logits_NV at a time ─► nats_B ─► HeldOut ─► bits per byte
                                                                   target bytes ┘

Bits per byte divides by the UTF-8 bytes that the targets stand for, so it compares models across tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bkray.config import UserError

LARGEST_EXPONENT = math.log(torch.finfo(torch.float64).max)


@torch.no_grad()
def window_nats(model: nn.Module, tokens_BN1: Tensor) -> Tensor:
    """Cross-entropy of every window, in nats summed over its N targets: (B,) float64 on the CPU.

    The model is run in eval mode, without gradients, and left in the modes it came in. Vocabulary-size
    tensors exist for one window at a time: a model with `hidden(tokens_BN) -> (B, N, D)` and `head(hidden)`
    runs its body on the whole batch and its head window by window; any other runs window by window.

    tokens_BN1: (B, N + 1) token ids on the model's device; the first of a window is input only.
    Raises ValueError where `tokens_BN1` holds no target.
    """
    if tokens_BN1.ndim != 2 or tokens_BN1.shape[1] < 2:
        raise ValueError(f"tokens of shape {tuple(tokens_BN1.shape)}: expected (B, N + 1) with N >= 1")
    inputs_BN, targets_BN = tokens_BN1[:, :-1], tokens_BN1[:, 1:].long()
    with _evaluating(model):
        nats = [
            F.cross_entropy(logits_NV.float(), targets_N, reduction="sum")
            for logits_NV, targets_N in zip(_logits(model, inputs_BN), targets_BN, strict=True)
        ]
    return torch.stack(nats).cpu().double() if nats else torch.zeros(0, dtype=torch.float64)


@dataclass(frozen=True)
class HeldOut:
    """What a model lost on held-out windows. Parts add up: `sum(parts, HeldOut())`."""

    nats: float = 0.0  # summed over all targets
    tokens: int = 0  # targets
    bytes: int = 0  # UTF-8 bytes that the targets stand for
    windows: int = 0

    def __add__(self, other: HeldOut) -> HeldOut:
        return HeldOut(
            self.nats + other.nats,
            self.tokens + other.tokens,
            self.bytes + other.bytes,
            self.windows + other.windows,
        )

    @property
    def bits_per_byte(self) -> float:
        return self._nats_over("bytes") / math.log(2.0)

    @property
    def nats_per_token(self) -> float:
        return self._nats_over("tokens")

    @property
    def perplexity(self) -> float:
        """exp(nats per token); infinity beyond the range of a float."""
        return math.inf if self.nats_per_token > LARGEST_EXPONENT else math.exp(self.nats_per_token)

    def as_dict(self, split: str) -> dict[str, Any]:
        """The `held_out` entry of summary.json for the split of that name."""
        return {
            "bits_per_byte": self.bits_per_byte,
            "nats_per_token": self.nats_per_token,
            "perplexity": self.perplexity,
            "split": split,
            "nats": self.nats,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "windows": self.windows,
        }

    def _nats_over(self, unit: str) -> float:
        if getattr(self, unit) == 0:
            raise UserError(
                f"{self.windows} held-out windows with 0 {unit}: the held-out text does not fill one window; "
                "raise corpus.validation and corpus.test, add text, or lower window"
            )
        return self.nats / getattr(self, unit)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode; afterwards every module is back in its own mode (parts may have been frozen in eval)."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _logits(model: nn.Module, inputs_BN: Tensor) -> Iterator[Tensor]:
    """The logits (N, V) of one window after the other."""
    hidden, head = getattr(model, "hidden", None), getattr(model, "head", None)
    if callable(hidden) and callable(head):
        yield from (head(hidden_1ND).squeeze(0) for hidden_1ND in hidden(inputs_BN).split(1))
    else:
        yield from (model(inputs_1N).squeeze(0) for inputs_1N in inputs_BN.split(1))
