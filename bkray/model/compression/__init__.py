"""Smaller models: weights of fewer bits, feed-forward layers of fewer channels or experts, fewer layers."""

from bkray.model.compression.depth import keep_layers
from bkray.model.compression.pruning import prune_feed_forward, unit_importance
from bkray.model.compression.quantization import dequantize, quantize, quantize_model, restore

__all__ = [
    "dequantize",
    "keep_layers",
    "prune_feed_forward",
    "quantize",
    "quantize_model",
    "restore",
    "unit_importance",
]
