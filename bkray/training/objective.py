"""What a training pass computes: tokens in, the loss of every target out, and what the model's options add.

The whole of it is what DDP wraps, so that a technique which looks at single losses needs no second pass.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn
from torch.nn import functional as F

from bkray.config import Recipe
from bkray.model import LanguageModel
from bkray.model.head import head_losses
from bkray.training.hardware import autocast, compile_errors, prepare
from bkray.training.parallel.world import World
from bkray.training.techniques.distillation import Distiller
from bkray.training.techniques.frozen import FrozenPrefix, frozen_layers
from bkray.training.techniques.length import length_at, pieces
from bkray.training.techniques.token_selection import TokenSelector


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
        self.freeze(frozen_layers(recipe, 0))
        tokens = recipe.training.token_selection
        self.selection = TokenSelector(tokens, recipe.seed) if tokens else None
        distillation = recipe.training.distillation
        self.distiller = Distiller(distillation) if distillation else None
        self.step = self.micro_batch = 0

    def freeze(self, layers: int) -> None:
        """From the next pass on so many layers are frozen, and the embedding with them."""
        self.prefix = None
        if layers:
            model = self._options
            assert model is not None  # the recipe refuses others
            self.prefix = FrozenPrefix(model, layers, self.settings.activation_cache)

    def begin(self, step: int) -> None:
        """Set what a pass of this step depends on."""
        self.step, self.micro_batch = step, 0
        if self.settings.length:
            self.length = length_at(step / self.recipe.steps, self.settings.length, self.recipe.window)

    def forward(
        self,
        tokens_BN1: Tensor,
        reference_BN: Tensor | None = None,
        soft_targets: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """`reference` (B, N): the losses of a reference model, where tokens are selected by them.

        `soft_targets`: a teacher's token ids and log-probabilities (B, N, k), where there is one.
        """
        rows = pieces(tokens_BN1, self.length) if self.settings.length else tokens_BN1
        targets_BN = tokens_BN1[:, 1:]
        with self.compiling(), autocast(self.settings, rows.device):
            if self.selection:
                losses = head_losses(*self._hidden(rows[:, :-1]), targets_BN.flatten())
                selected = self.selection(
                    losses.view_as(targets_BN), reference_BN, self.step, self.micro_batch
                )
                self.micro_batch += 1
                return selected
            logits = self._logits(rows[:, :-1])
        if self.distiller:
            losses = self.distiller(logits.flatten(0, 1), targets_BN.flatten(), soft_targets)
            return losses.view_as(targets_BN)
        return token_losses(logits, rows[:, 1:]).view_as(targets_BN)

    def _logits(self, tokens_RN: Tensor) -> Tensor:
        if self.prefix is None:
            return self.network(tokens_RN)
        return self.prefix.model.head(self._hidden(tokens_RN)[0])

    def _hidden(self, tokens_RN: Tensor) -> tuple[Tensor, Tensor]:
        """The final states (R, N, d), and the head's matrix (V, d)."""
        model = self._options
        assert model is not None  # the recipe refuses other models
        if self.prefix is None:
            return model.hidden(tokens_RN), model.embedding.weight
        return model.hidden_from(self.prefix(tokens_RN), self.prefix.layers), model.embedding.weight

    @property
    def _options(self) -> LanguageModel | None:
        (model,) = self._given
        return model if isinstance(model, LanguageModel) else None

    def auxiliary_losses(self, progress: float) -> dict[str, Tensor]:
        """What the model's options add to the loss of the last pass, by name; a collective call."""
        total = World.current().total
        return options.auxiliary_losses(progress, total) if (options := self._options) else {}

    def measurements(self) -> dict[str, float]:
        """What the last pass measured on this rank: the model's options, and what this pass left out."""
        measured = options.measurements() if (options := self._options) else {}
        if self.settings.length:
            measured["length"] = self.length
        if self.settings.activation_cache:
            measured["activations_reused"] = self.prefix.reused if self.prefix else 0.0
        if self.settings.unfreeze:
            measured["frozen_layers"] = self.prefix.layers if self.prefix else 0
        if self.selection:
            measured["kept_loss"] = self.selection.kept_loss
        if self.distiller:
            measured["distillation_loss"] = self.distiller.loss
        return measured

    def compiling(self) -> AbstractContextManager[None]:
        return compile_errors() if self.settings.compile else nullcontext()


def token_losses(logits_BNV: Tensor, targets_BN: Tensor) -> Tensor:
    """Cross-entropy of every target, nats (B, N), in float32."""
    losses = F.cross_entropy(logits_BNV.flatten(0, 1).float(), targets_BN.flatten(), reduction="none")
    return losses.view_as(targets_BN)
