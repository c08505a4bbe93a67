"""Smaller models: weights of fewer bits, and feed-forward layers of fewer channels or experts."""

from bkray.model.compression.pruning import prune_feed_forward, unit_importance
from bkray.model.compression.quantization import dequantize, quantize, quantize_model, restore

__all__ = [
    "dequantize",
    "prune_feed_forward",
    "quantize",
    "quantize_model",
    "restore",
    "unit_importance",
]
