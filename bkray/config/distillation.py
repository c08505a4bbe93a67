"""The recipe's `training.distillation`: a student learns from what trained models predict."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from bkray.config.section import Count, Section, Share


class Distillation(Section):
    """The most probable tokens of one teacher, or of the mean of several, as targets (arXiv 1503.02531)."""

    teachers: Annotated[tuple[str, ...], Field(min_length=1)]
    """Folders of exported models, whose tokenizer the corpus gets; several are one ensemble."""
    top_k: Count = 16
    """Tokens kept of every target position; the others count together as one rest."""
    temperature: Annotated[float, Field(ge=0.01, le=100.0)] = 2.0
    """Above 1 the less probable tokens weigh more."""
    weight: Share = 0.5
    """Of the soft targets in the loss; the rest is plain cross-entropy."""

    @field_validator("teachers")
    @classmethod
    def _each_once(cls, teachers: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({folder for folder in teachers if teachers.count(folder) > 1}):
            raise ValueError(f"{', '.join(twice)} is named more than once: an ensemble has other models")
        return teachers
