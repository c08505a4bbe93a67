"""WeightedSampler: passes that draw a share of the windows, those of great weight more often.

    weight ** strength(step) ─► order of a pass (Gumbel keys) ─► its first share is drawn, the rest left out

Within a pass every draw takes one of the windows that are left, with probability proportional to their
weight ** strength, without replacement (Efraimidis and Spirakis 2006, in logarithms). Where the strength has
changed in the middle of a pass, the windows that it has not drawn are ordered anew.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bkray.curriculum.sampler import CurriculumSampler

_STRENGTHS = 64  # the strength moves from start to end in so many jumps: each costs one sort of what is left


class WeightedSampler(CurriculumSampler):
    """A CurriculumSampler whose passes favour windows of great weight.

    Args:
        weight: (W,) above 0.
        pass_share: share of the available windows that a pass draws. With 1 every window is drawn once a
            pass, and weights decide about the order alone.
        strengths: power of the weight at the first and at the last step; 0 is no preference, below 0 windows
            of small weight are favoured.
        difficulty, batch_size, total_steps, options: of CurriculumSampler.
    """

    def __init__(
        self,
        weight: np.ndarray,
        difficulty: np.ndarray,
        batch_size: int,
        total_steps: int,
        *,
        pass_share: float = 0.5,
        strengths: tuple[float, float] = (1.0, 1.0),
        **options: Any,
    ) -> None:
        weight = np.asarray(weight, dtype=np.float64)
        if weight.shape != np.shape(difficulty):
            raise ValueError(
                f"weight {weight.shape} and difficulty {np.shape(difficulty)} must both be one a window"
            )
        if not (usable := np.isfinite(weight) & (weight > 0)).all():
            at = int(np.argmin(usable))
            raise ValueError(f"weight {weight[at]} of window {at} must be finite and above 0")
        if not 0.0 < pass_share <= 1.0:
            raise ValueError(f"pass_share {pass_share} must lie in (0, 1]")
        self.log_weight, self.pass_share, self.strengths = np.log(weight), pass_share, strengths
        super().__init__(difficulty, batch_size, total_steps, **options)

    def strength(self, step: int) -> float:
        """Power of the weight at `step`."""
        start, end = self.strengths
        progress = min(1.0, step / self.total_steps)
        return start + (end - start) * round(progress * _STRENGTHS) / _STRENGTHS

    def _ordered(self, windows: np.ndarray, step: int, rng: np.random.Generator) -> np.ndarray:
        keys = rng.gumbel(size=windows.size) + self.strength(step) * self.log_weight[windows]
        ordered: np.ndarray = windows[np.argsort(-keys, kind="stable")]
        return ordered

    def _reorders(self, step: int) -> bool:
        return step > 0 and self.strength(step) != self.strength(step - 1)

    def _left_out(self, pool: int) -> int:
        return pool - max(1, round(self.pass_share * pool))
