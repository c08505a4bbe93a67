"""Selection: how uncertain a model is about a window, the random control, and the loop of active learning."""

from bkray.selection.loop import ActiveLearningLoop
from bkray.selection.uncertainty import MEASURES, entropy, least_confidence, margin

__all__ = ["MEASURES", "ActiveLearningLoop", "entropy", "least_confidence", "margin"]
