"""CurriculumSampler: which windows step t trains on, as a pure function of t.

    difficulty ─► rank ─► available prefix (pacing) ─► passes without replacement ─► ids(step) ─► rank's part

A pass visits every available window once, in random order. Windows that become available in the middle of a
pass join what is left of it. The same step gives the same ids, whatever was asked before and however many
ranks share them, so a resumed run needs no more than the step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from bkray.curriculum.pacing import PacingKind, fraction

_GROWTHS = 256  # the available prefix grows in at most so many jumps: each costs one shuffle of what is left


class CurriculumSampler:
    """Global batches of window positions, easiest windows first.

    Args:
        difficulty: (W,) one score a window, low is easy; equal scores keep their order.
        batch_size: windows in a global batch.
        total_steps: steps over which the pacing runs; later steps have all of the data.
        pacing, start: see `fraction`; start=1 is plain shuffling without replacement.
        seed: with the step, the only source of randomness.
    """

    _queue: np.ndarray
    _batch: np.ndarray

    def __init__(
        self,
        difficulty: np.ndarray,
        batch_size: int,
        total_steps: int,
        *,
        pacing: PacingKind = "linear",
        start: float = 0.1,
        seed: int = 0,
    ) -> None:
        difficulty = np.asarray(difficulty, dtype=np.float64)
        if difficulty.ndim != 1 or difficulty.size == 0:
            raise ValueError(f"difficulty needs one score a window, got shape {difficulty.shape}")
        if not np.isfinite(difficulty).all():
            raise ValueError(f"difficulty of window {int(np.argmin(np.isfinite(difficulty)))} is not finite")
        if batch_size < 1 or total_steps < 1:
            raise ValueError(f"batch_size {batch_size} and total_steps {total_steps} must be at least 1")
        fraction(0.0, pacing, start)
        self.order = np.argsort(difficulty, kind="stable")
        self.batch_size, self.total_steps = batch_size, total_steps
        self._size: Callable[[int], int] = lambda step: batch_size
        self.pacing, self.start, self.seed = pacing, start, seed
        self._advances: list[tuple[int, float]] = []
        self._rewind()

    def drawing(self, size: Callable[[int], int]) -> CurriculumSampler:
        """The same sampler with `size(step)` windows in the batch of every step."""
        other = copy.copy(self)
        other._size, other._advances = size, list(self._advances)
        other._rewind()
        return other

    def share(self, step: int) -> float:
        """The share of the windows that is available at `step`."""
        advance = max((value for since, value in self._advances if since <= step), default=0.0)
        return fraction(min(1.0, step / self.total_steps + advance), self.pacing, self.start)

    def available(self, step: int) -> int:
        """How many windows are available at `step`: at least one, growing in steps of 1/256."""
        size = self.order.size
        jump = max(1, -(-size // _GROWTHS))
        return min(size, -(-max(1, round(self.share(step) * size)) // jump) * jump)

    def advance(self, step: int, value: float) -> None:
        """From `step` on, the pacing is ahead by `value` of the total (what DifficultyAdjuster returns)."""
        if value > max((v for _, v in self._advances), default=0.0):
            self._advances.append((step, value))
            self._undo(step)

    def ids(self, step: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """Positions (int64) of the global batch of `step`, or the part of `rank` of `world_size`.

        The parts of all ranks, one after the other, are the global batch.
        """
        if step < 0:
            raise ValueError(f"step {step} must not be negative")
        size = self._size(step)
        if not 0 <= rank < world_size or size % world_size:
            raise ValueError(
                f"rank {rank} of world_size {world_size}: the batch of {size} windows must be a multiple of "
                "the world size"
            )
        if step < self._next_step - 1:
            self._rewind()
        while self._next_step <= step:
            self._before = self._queue, self._batch, self._passes, self._pool
            self._batch = self._draw(self._next_step)
            self._next_step += 1
        part = size // world_size
        return self._batch[rank * part : (rank + 1) * part].copy()

    def state_dict(self) -> dict[str, Any]:
        return {"advances": [list(entry) for entry in self._advances]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._advances = [(int(step), float(value)) for step, value in state["advances"]]
        self._rewind()

    def _rewind(self) -> None:
        self._next_step, self._passes, self._pool = 0, 0, 0
        self._queue = self._batch = np.empty(0, dtype=np.int64)
        self._before = self._queue, self._batch, self._passes, self._pool

    def _undo(self, step: int) -> None:
        """Be where `step` is yet to be drawn; the last draw alone is taken back without drawing all again."""
        if self._next_step == step + 1:
            self._queue, self._batch, self._passes, self._pool = self._before
            self._next_step = step
        elif self._next_step > step:
            self._rewind()

    def _draw(self, step: int) -> np.ndarray:
        pool = self.available(step)
        if pool > self._pool or self._reorders(step):
            grown = np.concatenate([self._queue, self.order[self._pool : pool]])
            self._queue = self._ordered(grown, step, self._rng(0, step))
            self._pool = pool
        taken, missing = [], self._size(step)
        while missing > (left := self._queue.size - self._left_out(pool)):
            taken.append(self._queue[:left])
            missing -= left
            self._passes += 1
            self._queue = self._ordered(self.order[:pool], step, self._rng(1, self._passes))
        taken.append(self._queue[:missing])
        self._queue = self._queue[missing:]
        return np.concatenate(taken)

    def _ordered(self, windows: np.ndarray, step: int, rng: np.random.Generator) -> np.ndarray:
        """What is left of a pass, in the order in which it will be drawn."""
        return rng.permutation(windows)

    def _reorders(self, step: int) -> bool:
        """Whether what is left of the pass is to be ordered anew at `step`."""
        return False

    def _left_out(self, pool: int) -> int:
        """How many of `pool` available windows a pass does not draw: the last ones in its order."""
        return 0

    def _rng(self, purpose: int, index: int) -> np.random.Generator:
        key = np.array([(self.seed << 8) | purpose, index], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key))
