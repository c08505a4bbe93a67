"""What a saving is: the cost at which an arm reaches the held-out quality of another.

budgets (cost, bits per byte), each a completed run ─► the cost at a level, log-interpolated ─► ratios, paired
a cost that many targets share ─► how many targets it takes to earn it back
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bkray.evaluation.paired import PairedInterval, paired_bootstrap


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


@dataclass(frozen=True)
class Saving:
    """What an arm spent to reach the bits per byte that its comparator reached, an entry a seed of each.

    Figures over all seeds are None where a seed has not reached its level.
    """

    comparator: tuple[float, ...]
    own: tuple[float | None, ...]
    """None where no budget reached the level."""
    at_most: bool = False
    """Whether a seed's smallest budget reached it: `own` is no more than that, and the ratio no less."""

    @classmethod
    def of(
        cls, comparator: Sequence[tuple[float, float]], curves: Sequence[Sequence[tuple[float, float]]]
    ) -> Saving:
        """From (cost, bits per byte) of the comparator's run, which is the level, and of the arm's runs.

        comparator: a run a seed; curves: one run a budget, in any order, for each of the same seeds.
        Raises ValueError where the seeds differ in number, or as `cost_to_reach` does.
        """
        own, at_most = [], False
        for (_, level), curve in zip(comparator, curves, strict=True):
            costs, bits = zip(*sorted(curve), strict=True)
            own.append(cost_to_reach(level, costs, bits))
            at_most |= own[-1] == costs[0]
        return cls(tuple(cost for cost, _ in comparator), tuple(own), at_most)

    @classmethod
    def together(cls, targets: Sequence[Saving]) -> Saving:
        """Several targets as one: their costs added up, seed by seed."""
        comparator = (sum(costs) for costs in zip(*(each.comparator for each in targets), strict=True))
        own = (
            None if None in costs else sum(filter(None, costs))
            for costs in zip(*(each.own for each in targets), strict=True)
        )
        return cls(tuple(comparator), tuple(own), any(each.at_most for each in targets))

    @property
    def missed(self) -> int:
        """Seeds that have not reached their level."""
        return self.own.count(None)

    @property
    def cost(self) -> float | None:
        """The arm's, mean over the seeds."""
        return None if self.missed else statistics.fmean(self._reached)

    @property
    def comparator_cost(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.comparator)

    @property
    def ratio(self) -> float | None:
        """How many times cheaper the arm is: the geometric mean over the seeds."""
        if self.missed:
            return None
        return statistics.geometric_mean(a / b for a, b in zip(self.comparator, self._reached, strict=True))

    @property
    def interval(self) -> PairedInterval | None:
        """Of the ratio, over the seeds; None for a single one."""
        if self.missed or len(self.own) < 2:
            return None
        return paired_bootstrap(self.comparator, self._reached)

    def with_more(self, own: float, comparator: float = 0.0) -> float | None:
        """The ratio of the mean costs where the arm and its comparator spend so much more."""
        return None if self.cost is None else (self.comparator_cost + comparator) / (self.cost + own)

    def break_even(self, shared: float) -> int | None:
        """`break_even` of the mean costs; with `at_most` no more than that."""
        return None if self.cost is None else break_even(shared, self.cost, self.comparator_cost)

    @property
    def _reached(self) -> list[float]:
        return [cost for cost in self.own if cost is not None]
