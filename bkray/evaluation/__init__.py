"""Held-out bits per byte, the n-gram baselines beside it, and paired comparison across seeds."""

from bkray.evaluation.bits_per_byte import HeldOut, window_nats
from bkray.evaluation.ngram import NGramBaseline
from bkray.evaluation.paired import PairedInterval, paired_bootstrap

__all__ = ["HeldOut", "NGramBaseline", "PairedInterval", "paired_bootstrap", "window_nats"]
