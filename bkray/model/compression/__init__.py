"""Smaller models: weights of fewer bits, and feed-forward layers of fewer channels."""

from bkray.model.compression.pruning import channel_importance, prune_feed_forward
from bkray.model.compression.quantization import dequantize, quantize, quantize_model, restore

__all__ = [
    "channel_importance",
    "dequantize",
    "prune_feed_forward",
    "quantize",
    "quantize_model",
    "restore",
]
