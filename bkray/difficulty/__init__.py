"""Difficulty: text statistics, and scores under a model."""

from bkray.difficulty.model_score import (
    has_hidden,
    perplexity,
    score_windows,
    scoring_dtype,
    windows_a_pass,
)
from bkray.difficulty.statistics import compression_ratio, rarity, sentence_length

__all__ = [
    "compression_ratio",
    "has_hidden",
    "perplexity",
    "rarity",
    "score_windows",
    "scoring_dtype",
    "sentence_length",
    "windows_a_pass",
]
