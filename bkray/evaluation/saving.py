"""What a saving is: the cost at which an arm reaches the held-out quality of another.

budgets (cost, bits per byte), each a completed run ─► the cost at a level, log-interpolated ─► ratios
a cost that many targets share ─► how many targets it takes to earn it back
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def cost_to_reach(level: float, costs: Sequence[float], bits_per_byte: Sequence[float]) -> float | None:
    """The cost at which completed runs of growing budgets reach `level` bits per byte, or None.

    Between the last budget above the level and the next one log-cost is interpolated linearly. None where
    the largest budget does not reach it: nothing is extrapolated. Where the smallest does, its cost is given,
    which is no more than a bound. Raises ValueError where the costs do not grow.
    """
    costs_B, bits_B = np.asarray(costs, dtype=np.float64), np.asarray(bits_per_byte, dtype=np.float64)
    if costs_B.shape != bits_B.shape or not len(costs_B) or (np.diff(costs_B) <= 0).any() or costs_B[0] <= 0:
        raise ValueError(f"costs {list(costs)} must grow from above 0, one for each of {list(bits_per_byte)}")
    above = np.flatnonzero(~(bits_B <= level))  # what is not finite reaches nothing
    if not len(above):
        return float(costs_B[0])
    left = int(above[-1])
    if left == len(costs_B) - 1:
        return None
    if not math.isfinite(bits_B[left]):
        return float(costs_B[left + 1])
    share = (bits_B[left] - level) / (bits_B[left] - bits_B[left + 1])
    return float(np.exp((1 - share) * np.log(costs_B[left]) + share * np.log(costs_B[left + 1])))


def break_even(shared: float, own: float, alternative: float) -> int | None:
    """The least number of targets M with shared + M own <= M alternative; None where there is no such number.

    `shared` is spent once for all targets, `own` on each, `alternative` on each without the former.
    """
    if own >= alternative:
        return None
    return max(1, math.ceil(shared / (alternative - own)))
