"""What the teachers of a distillation must be, known from their folders before any data is prepared."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from bkray.config import Recipe, UserError
from bkray.training.state.start import exported_network, vocabulary_size


def check_teachers(recipe: Recipe, student: nn.Module) -> None:
    """Raise UserError where a teacher is no exported model or smaller than `student`, or top_k too large.

    `student` may be on the meta device.
    """
    distillation = recipe.training.distillation
    if distillation is None:
        return
    size = _parameters(student)
    for setting, folder in recipe.teachers.items():
        if (there := _parameters(exported_network(setting, Path(folder)))) < size:
            raise UserError(
                f"{setting} {folder} has {there:,} parameters, fewer than the student's {size:,}: "
                "name a larger one, or make model smaller"
            )
    if distillation.top_k > (vocabulary := vocabulary_size(recipe)):
        raise UserError(
            f"training.distillation.top_k {distillation.top_k} is more than the {vocabulary} tokens of the "
            "teachers' vocabulary: lower it"
        )


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
