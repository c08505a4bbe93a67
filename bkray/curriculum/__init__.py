"""Curriculum: pacing, its adjustment by validation loss, and the sampler that follows it."""

from bkray.curriculum.adjuster import DifficultyAdjuster
from bkray.curriculum.growing import GrowingSampler
from bkray.curriculum.pacing import fraction
from bkray.curriculum.replay import ReplaySampler
from bkray.curriculum.sampler import CurriculumSampler
from bkray.curriculum.weighted import WeightedSampler

__all__ = [
    "CurriculumSampler",
    "DifficultyAdjuster",
    "GrowingSampler",
    "ReplaySampler",
    "WeightedSampler",
    "fraction",
]
