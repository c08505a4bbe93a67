"""ActiveLearningLoop: rounds of train ─► score a sampled pool ─► select ─► add, over the ids of windows.

    all ids ─► random start ─► taken ─► train ─► pool: sample of what is not taken ─► score, select ─► add ─┐
                                 ▲                                                                          │
                                 └──────────────────────────────────────────────────────────────────────────┘

Pool-based sampling in batches (Settles, Active Learning Literature Survey, 2009, section 2.3). What is not
selected goes back and may be sampled again. It trains and scores nothing itself: it says which windows.
"""

from __future__ import annotations

import numpy as np


class ActiveLearningLoop:
    """Which windows are trained on and which are scored: a function of the ids, the seed and what was added.

    Args:
        ids: (W,) int64, distinct, in any order; 8 bytes a window are held.
        start: share of the windows to begin with, drawn at random; at least one.
        pool: share of the windows that are sampled for scoring in a round; all that are left where they are
            fewer.
        keep: share of the pool that is added in a round.
        rounds: how often windows are added.
        seed: with the round, the only source of randomness.
    """

    def __init__(
        self, ids: np.ndarray, *, start: float, pool: float, keep: float, rounds: int, seed: int = 0
    ) -> None:
        self.ids = np.unique(np.asarray(ids, dtype=np.int64))
        if not 0 < len(self.ids) == len(ids):
            raise ValueError(f"{len(ids)} ids, {len(self.ids)} of them distinct: each window needs its own")
        for name, share in (("start", start), ("pool", pool), ("keep", keep)):
            if not 0.0 < share <= 1.0:
                raise ValueError(f"{name} {share} must lie in (0, 1]")
        if rounds < 0:
            raise ValueError(f"rounds {rounds} must not be negative")
        self.keep, self.rounds, self.seed = keep, rounds, seed
        self.pool_size = max(1, round(pool * len(self.ids)))
        self.joined = [self._sample(0, self.ids, max(1, round(start * len(self.ids))))]
        """The ids that joined at the start and in each round since."""

    @property
    def round(self) -> int:
        """Rounds that are done."""
        return len(self.joined) - 1

    @property
    def taken(self) -> np.ndarray:
        """The ids to train on, in the order in which they joined."""
        return np.concatenate(self.joined)

    def pool_sizes(self) -> list[int]:
        """How many windows each round scores, where each adds the share `keep` of them."""
        left, sizes = len(self.ids) - len(self.joined[0]), []
        for _ in range(self.rounds):
            sizes.append(min(self.pool_size, left))
            left = max(0, left - self._added(sizes[-1]))
        return sizes

    def pool(self) -> np.ndarray:
        """The ids to score in this round, sorted; the same however often it is asked."""
        if self.round >= self.rounds:
            raise ValueError(f"all {self.rounds} rounds are done")
        return self._sample(2 * self.round + 2, np.setdiff1d(self.ids, self.taken), self.pool_size)

    def any_of_pool(self) -> np.ndarray:
        """As many ids of this round's pool as a round adds, at random: the control of a selection."""
        pool = self.pool()
        return self._sample(2 * self.round + 3, pool, self._added(len(pool)))

    def add(self, chosen: np.ndarray) -> None:
        """End the round with the ids that were selected from its pool."""
        chosen = np.asarray(chosen, dtype=np.int64)
        if len(np.unique(chosen)) < len(chosen) or not np.isin(chosen, self.pool()).all():
            raise ValueError(f"round {self.round + 1}: each of the chosen must be in the pool, and once")
        self.joined.append(chosen)

    def starts(self, steps: int) -> list[int]:
        """The first step of every round out of `steps`: each goes over what it has equally often.

        Rounds are as long as what they train on is large: start, start + added, start + 2 added …
        """
        sizes = len(self.joined[0]) + self.keep * self.pool_size * np.arange(self.rounds + 1)
        return [round(steps * float(before)) for before in np.cumsum([0, *sizes[:-1]]) / sizes.sum()]

    def _added(self, pool: int) -> int:
        return max(1, round(self.keep * pool))

    def _sample(self, draw: int, ids: np.ndarray, size: int) -> np.ndarray:
        """`size` of the sorted `ids`, or all where they are fewer, sorted; another sample for each `draw`."""
        key = np.array([(self.seed << 8) | 2, draw], dtype=np.uint64)  # 0 and 1 are the sampler's
        rng = np.random.Generator(np.random.Philox(key=key))
        return np.sort(rng.choice(ids, min(size, len(ids)), replace=False, shuffle=False))
