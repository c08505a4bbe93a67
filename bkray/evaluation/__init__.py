"""Held-out bits per byte, n-gram baselines, paired comparison, the cost of a level, skill of scores."""

from bkray.evaluation.bits_per_byte import HeldOut, window_nats
from bkray.evaluation.ngram import NGramBaseline
from bkray.evaluation.paired import PairedDifference, PairedInterval, paired_bootstrap, paired_difference
from bkray.evaluation.rank_correlation import rank_correlation
from bkray.evaluation.saving import Saving, break_even, cost_to_reach

__all__ = [
    "HeldOut",
    "NGramBaseline",
    "PairedDifference",
    "PairedInterval",
    "Saving",
    "break_even",
    "cost_to_reach",
    "paired_bootstrap",
    "paired_difference",
    "rank_correlation",
    "window_nats",
]
