"""What the teachers of a distillation must be, known from their folders before anything is read or written."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from bkray.config import Recipe, UserError
from bkray.config.loading import parse_section
from bkray.model import build_model
from bkray.training.state.export import Exported


def check_teachers(recipe: Recipe, student: nn.Module) -> None:
    """Raise UserError where a teacher is smaller than `student`, or top_k larger than the vocabulary.

    The folders hold exported models of one vocabulary; no weights are read.
    """
    distillation = recipe.training.distillation
    if distillation is None:
        return
    size = _parameters(student)
    for setting, folder in recipe.teachers.items():
        config = json.loads((Path(folder) / "config.json").read_text())
        exported = parse_section(Exported, {"model": config["model"]}, f"{folder}/config.json")
        with torch.device("meta"):
            there = _parameters(build_model(exported.model, config["vocab_size"]))
        if there < size:
            raise UserError(
                f"{setting} {folder} has {there:,} parameters, the student {size:,}: a teacher is as large at "
                "least: name another, or make model smaller"
            )
        if distillation.top_k > config["vocab_size"]:
            raise UserError(
                f"training.distillation.top_k {distillation.top_k} is more than the {config['vocab_size']} "
                f"tokens of the vocabulary of {folder}: lower it"
            )


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
