"""What a training pass computes: tokens in, the loss of every target out, and what the model's options add.

The whole of it is what DDP wraps, so that a technique which looks at single losses needs no second pass.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn
from torch.nn import functional as F

from bkray.config import Recipe
from bkray.model import LanguageModel
from bkray.training.frozen import FrozenPrefix, freeze
from bkray.training.hardware import autocast, compile_errors, prepare
from bkray.training.length import length_at, pieces


class Objective(nn.Module):
    """Tokens (B, N + 1) to cross-entropies (B, N), nats, float32; the parameters are the model's own.

    `begin` says which step the next pass belongs to.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.network = prepare(model, recipe.training)
        self.recipe, self.settings = recipe, recipe.training
        self.length = recipe.window
        self._given = (model,)  # in a tuple, where its parameters are not registered a second time
        self.prefix: FrozenPrefix | None = None
        if layers := recipe.training.freeze:
            assert isinstance(model, LanguageModel)  # the recipe refuses others
            freeze(model, layers)
            self.prefix = FrozenPrefix(model, layers, recipe.training.activation_cache)

    def begin(self, step: int) -> None:
        """Set what a pass of this step depends on."""
        if self.settings.length:
            self.length = length_at(step / self.recipe.steps, self.settings.length, self.recipe.window)

    def forward(self, tokens_BN1: Tensor) -> Tensor:
        rows = pieces(tokens_BN1, self.length) if self.settings.length else tokens_BN1
        with self.compiling(), autocast(self.settings, rows.device):
            logits = self._logits(rows[:, :-1])
        return token_losses(logits, rows[:, 1:]).view(len(tokens_BN1), -1)

    def _logits(self, tokens_RN: Tensor) -> Tensor:
        if self.prefix is None:
            return self.network(tokens_RN)
        model, stream_RNd = self.prefix.model, self.prefix(tokens_RN)
        return model.head(model.hidden_from(stream_RNd, self.prefix.layers))

    @property
    def _options(self) -> LanguageModel | None:
        (model,) = self._given
        return model if isinstance(model, LanguageModel) else None

    def auxiliary_losses(self, progress: float) -> dict[str, Tensor]:
        """What the model's options add to the loss of the last pass, by name."""
        return options.auxiliary_losses(progress) if (options := self._options) else {}

    def measurements(self) -> dict[str, float]:
        """What the last pass measured on this rank: the model's options, and what this pass left out."""
        measured = options.measurements() if (options := self._options) else {}
        if self.settings.length:
            measured["length"] = self.length
        if self.settings.activation_cache and self.prefix:
            measured["activations_reused"] = self.prefix.reused
        return measured

    def compiling(self) -> AbstractContextManager[None]:
        return compile_errors() if self.settings.compile else nullcontext()


def token_losses(logits_BNV: Tensor, targets_BN: Tensor) -> Tensor:
    """Cross-entropy of every target, nats (B, N), in float32."""
    losses = F.cross_entropy(logits_BNV.flatten(0, 1).float(), targets_BN.flatten(), reduction="none")
    return losses.view_as(targets_BN)
