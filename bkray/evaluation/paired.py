"""Paired comparison of two arms that were run with common seeds.

    a_S, b_S (one value a seed) ─► log(a / b) ─► resample the seeds ─► percentile interval on the mean

The ratio of two arms is claimed only as far as its interval reaches (Efron and Tibshirani 1993, chapter 13).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bkray.config import UserError


@dataclass(frozen=True)
class PairedInterval:
    """Mean of log(a / b) over the seeds, with its interval."""

    log_ratio: float
    low: float
    high: float
    pairs: int

    @property
    def ratio(self) -> tuple[float, float, float]:
        """a / b itself (geometric mean over the seeds): (mean, low, high)."""
        return math.exp(self.log_ratio), math.exp(self.low), math.exp(self.high)


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> PairedInterval:
    """Percentile bootstrap interval on the mean of log(a / b).

    a, b: (S,) positive values (a loss, a cost), entry i of both from the same seed.
    Raises ValueError where the lengths differ, UserError where there are fewer than two pairs or a value is
    not a positive number.
    """
    a_S, b_S = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a_S.ndim != 1 or a_S.shape != b_S.shape:
        raise ValueError(f"pairs of shapes {a_S.shape} and {b_S.shape}: expected one value a seed in each")
    if len(a_S) < 2:
        raise UserError(
            f"{len(a_S)} paired seeds: an interval needs at least 2, so run both arms with more seeds"
        )
    for values_S in (a_S, b_S):
        if (bad_S := ~(np.isfinite(values_S) & (values_S > 0))).any():
            raise UserError(
                f"value {values_S[bad_S][0]} at pair {np.argmax(bad_S)}: a log-ratio needs positive numbers; "
                "leave a diverged seed out of both arms and say so"
            )
    log_ratio_S = np.log(a_S / b_S)
    drawn_RS = np.random.default_rng(seed).integers(len(a_S), size=(resamples, len(a_S)))
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(log_ratio_S[drawn_RS].mean(axis=1), [tail, 1.0 - tail])
    return PairedInterval(float(log_ratio_S.mean()), float(low), float(high), len(a_S))
