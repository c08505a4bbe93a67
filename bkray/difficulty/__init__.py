"""Difficulty: text statistics, and scores under a model."""

from bkray.difficulty.model_score import score_windows
from bkray.difficulty.statistics import compression_ratio, rarity

__all__ = ["compression_ratio", "rarity", "score_windows"]
