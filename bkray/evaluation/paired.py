"""Paired comparison of two arms that were run with common seeds.

    a_S, b_S (one value a seed) ─► log(a / b) ─► resample the seeds ─► percentile interval on the mean
    a_SW, b_SW (nats a seed and window) ─► a - b ─► resample seeds and windows ─► interval in bits per byte

The ratio of two arms is claimed only as far as its interval reaches (Efron and Tibshirani 1993, chapter 13).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bkray.config import UserError


@dataclass(frozen=True)
class PairedDifference:
    """Held-out bits per byte of a less those of b, with its interval."""

    bits_per_byte: float
    low: float
    high: float


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


def paired_difference(
    a_SW: np.ndarray,
    b_SW: np.ndarray,
    bytes_W: np.ndarray,
    *,
    level: float = 0.95,
    resamples: int = 4_000,
    seed: int = 0,
) -> PairedDifference:
    """Percentile bootstrap interval on the difference of two arms' bits per byte.

    a_SW, b_SW: (S, W) nats of every held-out window, row s of both from the same seed; bytes_W: what the
    windows' targets stand for. Seeds and windows are resampled, both with replacement: with one seed the
    interval speaks of the text alone, and with few it is somewhat too narrow.
    Raises ValueError where the shapes do not fit or there is nothing.
    """
    if a_SW.shape != b_SW.shape or a_SW.ndim != 2 or a_SW.shape[1:] != bytes_W.shape or not a_SW.size:
        raise ValueError(f"nats of shapes {a_SW.shape} and {b_SW.shape}, bytes of shape {bytes_W.shape}")
    bits_SW = (a_SW - b_SW) / math.log(2.0)
    seeds, windows = bits_SW.shape
    rng = np.random.default_rng(seed)
    drawn_R = np.empty(resamples)
    for number in range(resamples):
        chosen = rng.integers(windows, size=windows)
        mean_W = bits_SW[rng.integers(seeds, size=seeds)].mean(axis=0)
        drawn_R[number] = mean_W[chosen].sum() / bytes_W[chosen].sum()
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(drawn_R, [tail, 1.0 - tail])
    return PairedDifference(float(bits_SW.mean(axis=0).sum() / bytes_W.sum()), float(low), float(high))
