"""Selection: how uncertain a model is about a window, thresholds, diversity, the loop of active learning.

The measures take torch, which is imported where one is asked for: thresholds and clusters do without.
"""

from typing import TYPE_CHECKING, Any

from bkray.selection.diversity import Clusters, quotas
from bkray.selection.loop import ActiveLearningLoop
from bkray.selection.threshold import histogram, quantile, sort_keys, taken, thresholds

if TYPE_CHECKING:
    from bkray.selection.uncertainty import (
        MEASURES,
        dropout_masks,
        entropy,
        least_confidence,
        margin,
        variation_ratio,
    )

__all__ = [
    "MEASURES",
    "ActiveLearningLoop",
    "Clusters",
    "dropout_masks",
    "entropy",
    "histogram",
    "least_confidence",
    "margin",
    "quantile",
    "quotas",
    "sort_keys",
    "taken",
    "thresholds",
    "variation_ratio",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bkray.selection import uncertainty

    return getattr(uncertainty, name)
