"""Selection: how uncertain a model is about a window, and the random control."""

from bkray.selection.uncertainty import MEASURES, entropy, least_confidence, margin

__all__ = ["MEASURES", "entropy", "least_confidence", "margin"]
