"""Curriculum: pacing, its adjustment by validation loss, and the sampler that follows it."""

from bkray.curriculum.adjuster import DifficultyAdjuster
from bkray.curriculum.pacing import fraction
from bkray.curriculum.sampler import CurriculumSampler

__all__ = ["CurriculumSampler", "DifficultyAdjuster", "fraction"]
