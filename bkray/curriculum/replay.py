"""ReplaySampler: batches of one set of windows, the target's, in which a share comes from another, the pool.

    target sampler ─► B - R(step) windows ─┐
    pool, passes without replacement ──────┴─► ids(step): the target's first, then the pool's

R(step) is such that after every step the share of all draws is the one asked for, to within half a window.
Replay against forgetting: Rolnick et al. 2019 (arXiv 1811.11682); of a share of the pretraining data:
Scialom et al. 2022 (arXiv 2205.12393).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bkray.curriculum.sampler import CurriculumSampler

_OTHER_SEED = 2**31  # above every seed of a recipe: the pool's passes are drawn apart from the target's


class ReplaySampler(CurriculumSampler):
    """Ids below `windows` are the target's, those from there on the pool's, as in `JoinedWindows`.

    Args:
        target: whose batches the pool takes its share of; pacing, weights and rounds stay its own.
        windows: W, all windows of the target.
        pool: number of the pool's windows.
        share: of all draws those from the pool, in (0, 1).
    """

    def __init__(self, target: CurriculumSampler, windows: int, pool: int, share: float) -> None:
        if not 0.0 < share < 1.0:
            raise ValueError(f"share {share} must lie in (0, 1)")
        batch, steps, seed = target.batch_size, target.total_steps, target.seed
        super().__init__(np.zeros(windows + pool), batch, steps, start=1.0, seed=seed)
        self.windows, self.replayed = windows, replayed_windows(batch, share)
        self.target = target.drawing(lambda step: batch - self.replayed(step))
        plain = CurriculumSampler(np.zeros(pool), batch, steps, start=1.0, seed=seed + _OTHER_SEED)
        self.pool = plain.drawing(self.replayed)

    def drawing(self, size: Callable[[int], int]) -> CurriculumSampler:
        raise ValueError("a share of batches of another size is not defined: skipping cannot take replay")

    def share(self, step: int) -> float:
        """The share of the target's windows that is available at `step`."""
        return self.target.share(step)

    def available(self, step: int) -> int:
        """How many windows are available at `step`, the pool's among them."""
        return self.target.available(step) + len(self.pool.order)

    def advance(self, step: int, value: float) -> None:
        self.target.advance(step, value)
        self._undo(step)

    def state_dict(self) -> dict[str, Any]:
        return self.target.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.target.load_state_dict(state)
        self._rewind()

    def _draw(self, step: int) -> np.ndarray:
        return np.concatenate([self.target.ids(step), self.windows + self.pool.ids(step)])


def replayed_windows(batch_size: int, share: float) -> Callable[[int], int]:
    """How many of a step's `batch_size` windows are the pool's: round(s n B) in all after n steps."""
    return lambda step: round((step + 1) * share * batch_size) - round(step * share * batch_size)
