"""What a training pass computes: tokens in, the loss of every target out, and what the model's options add.

The whole of it is what DDP wraps, so that a technique which looks at single losses needs no second pass.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn
from torch.nn import functional as F

from bkray.config.training import Training
from bkray.model import LanguageModel
from bkray.training.hardware import autocast, compile_errors, prepare


class Objective(nn.Module):
    """Tokens (B, N + 1) to cross-entropies (B, N), nats, float32; the parameters are the model's own."""

    def __init__(self, model: nn.Module, training: Training) -> None:
        super().__init__()
        self.network = prepare(model, training)
        self.settings = training
        self._given = (model,)  # in a tuple, where its parameters are not registered a second time

    def forward(self, tokens_BN1: Tensor) -> Tensor:
        with self.compiling(), autocast(self.settings, tokens_BN1.device):
            logits_BNV = self.network(tokens_BN1[:, :-1])
        return token_losses(logits_BNV, tokens_BN1[:, 1:])

    @property
    def _options(self) -> LanguageModel | None:
        (model,) = self._given
        return model if isinstance(model, LanguageModel) else None

    def auxiliary_losses(self, progress: float) -> dict[str, Tensor]:
        """What the model's options add to the loss of the last pass, by name."""
        return options.auxiliary_losses(progress) if (options := self._options) else {}

    def measurements(self) -> dict[str, float]:
        """What the model's options measured in the last pass, on this rank."""
        return measurements(self._given[0])

    def compiling(self) -> AbstractContextManager[None]:
        return compile_errors() if self.settings.compile else nullcontext()


def measurements(model: nn.Module) -> dict[str, float]:
    """What the options of `model` measured in its last pass."""
    return model.measurements() if isinstance(model, LanguageModel) else {}


def token_losses(logits_BNV: Tensor, targets_BN: Tensor) -> Tensor:
    """Cross-entropy of every target, nats (B, N), in float32."""
    losses = F.cross_entropy(logits_BNV.flatten(0, 1).float(), targets_BN.flatten(), reduction="none")
    return losses.view_as(targets_BN)
