"""Held-out bits per byte, n-gram baselines beside it, paired comparison across seeds, skill of scores."""

from bkray.evaluation.bits_per_byte import HeldOut, window_nats
from bkray.evaluation.ngram import NGramBaseline
from bkray.evaluation.paired import PairedDifference, PairedInterval, paired_bootstrap, paired_difference
from bkray.evaluation.rank_correlation import rank_correlation

__all__ = [
    "HeldOut",
    "NGramBaseline",
    "PairedDifference",
    "PairedInterval",
    "paired_bootstrap",
    "paired_difference",
    "rank_correlation",
    "window_nats",
]
