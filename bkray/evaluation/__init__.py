"""Held-out bits per byte, the n-gram baselines beside it, and paired comparison across seeds."""

from bkray.evaluation.bits_per_byte import HeldOut, window_nats
from bkray.evaluation.ngram import NGramBaseline
from bkray.evaluation.paired import PairedDifference, PairedInterval, paired_bootstrap, paired_difference

__all__ = [
    "HeldOut",
    "NGramBaseline",
    "PairedDifference",
    "PairedInterval",
    "paired_bootstrap",
    "paired_difference",
    "window_nats",
]
