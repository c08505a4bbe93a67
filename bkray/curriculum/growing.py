"""GrowingSampler: windows that become available in rounds, each round from a step of its own.

joined[0] from step starts[0] = 0 on, joined[1] from starts[1] on … ─► passes without replacement ─► ids(step)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from bkray.curriculum.sampler import CurriculumSampler


class GrowingSampler(CurriculumSampler):
    """A CurriculumSampler that draws from the windows that have joined.

    A round that is not known yet changes no draw of an earlier step, so that a run may learn of it as late as
    at the first step of that round.

    Args:
        joined: for each round the positions, among all W windows, of those that join.
        starts: the first step of each round, rising from 0; rounds that are not known yet may be among them.
        windows: W.
        batch_size, total_steps, seed: of CurriculumSampler.
    """

    def __init__(
        self,
        joined: Sequence[np.ndarray],
        starts: Sequence[int],
        windows: int,
        batch_size: int,
        total_steps: int,
        *,
        seed: int = 0,
    ) -> None:
        order = np.concatenate(joined).astype(np.int64)
        if len(np.unique(order)) < len(order) or not len(joined[0]) or len(joined) > len(starts):
            raise ValueError(
                f"rounds of {[len(part) for part in joined]} windows from steps {list(starts)}: a window "
                "joins once, some join in the first round, and every round needs its first step"
            )
        if starts[0] != 0 or list(starts) != sorted(starts):
            raise ValueError(f"starts {list(starts)} must rise from 0")
        self.sizes, self.starts = np.cumsum([len(part) for part in joined]), list(starts)
        super().__init__(np.zeros(windows), batch_size, total_steps, start=1.0, seed=seed)
        self.order = np.concatenate([order, np.setdiff1d(np.arange(windows), order)])

    def available(self, step: int) -> int:
        """How many windows have joined at `step`."""
        begun = bisect_right(self.starts, step)
        return int(self.sizes[min(begun, len(self.sizes)) - 1])

    def share(self, step: int) -> float:
        """Of all windows, the share that has joined at `step`."""
        return self.available(step) / self.order.size
