"""Token selection: all tokens are read, those with the most to learn give the gradient (arXiv 2404.07965).

    final states (M, d) ─► head, chunk by chunk ─► losses (M,) ─► excess over the reference ─► K largest
             ▲                                                                                    │
             └──── backward pass of the head, its logits computed again ◄──── gradient of K rows ◄┘

What is saved is the backward pass of the head for the tokens that are left out: the body below it works for
all of them. The head in chunks is `bkray.model.head`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bkray.config.savings import TokenSelection
from bkray.corpus.schema import row_rng
from bkray.training.parallel.world import World


class TokenSelector:
    """Losses of this rank's tokens to losses of the same values, whose mean has another gradient.

    It is that of the mean over the kept tokens of all ranks: exactly the share `keep` of a micro-batch of all
    ranks, by the loss above the reference or drawn at random by (seed, step, micro-batch); ties go to the
    first. So the same tokens are kept whatever the number of ranks, but not of micro-batches, and the logged
    loss stays that of all tokens.
    """

    def __init__(self, settings: TokenSelection, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.kept_loss = 0.0
        """Mean loss of the kept tokens of this rank's last batch, nats; nan where there were none."""

    def __call__(
        self, losses_BN: Tensor, reference_BN: Tensor | None, step: int, micro_batch: int = 0
    ) -> Tensor:
        world, values_BN = World.current(), losses_BN.detach()
        if self.settings.kind == "random":
            stage = f"token_selection {micro_batch}" if micro_batch else "token_selection"
            drawn = row_rng(self.seed, stage, step).random(losses_BN.numel() * world.size)
            scores_T = torch.from_numpy(drawn).to(losses_BN.device)
        else:
            if reference_BN is None:
                raise ValueError("token_selection reducible needs the reference losses of the windows")
            scores_T = torch.cat(world.gather((values_BN - reference_BN).flatten()))
        kept_T = largest(scores_T, self.settings.keep)
        kept_BN = kept_T.view(world.size, -1)[world.rank].view_as(losses_BN)
        self.kept_loss = float(values_BN[kept_BN].mean())
        weight = len(kept_T) / int(kept_T.sum())
        return values_BN + (losses_BN - values_BN) * (weight * kept_BN)


def largest(scores_T: Tensor, share: float) -> Tensor:
    """(T,) bool: exactly round(share x T) of the scores, at least 1: the largest, the first among equals."""
    kept = max(1, round(share * len(scores_T)))
    mask = torch.zeros_like(scores_T, dtype=torch.bool)
    mask[scores_T.argsort(descending=True, stable=True)[:kept]] = True
    return mask
