"""The finished model as a folder that anyone can load: safetensors, tokenizer.json, config.json."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bkray.config import UserError
from bkray.config.loading import parse_section
from bkray.config.model import Model
from bkray.config.recipe import Recipe
from bkray.config.section import Section
from bkray.model import build_model
from bkray.model.compression import restore
from bkray.training.divergence.finite import first_non_finite


class Exported(Section):
    """The part of config.json that says which network the weights belong to."""

    model: Model


def export_model(
    directory: Path, model: nn.Module, recipe: Recipe, tokenizer: Path, vocab_size: int, extra: dict[str, Any]
) -> None:
    """Write `directory` whole or not at all; `extra` joins config.json."""
    config = {
        "model": recipe.model.model_dump(mode="json"),
        "vocab_size": vocab_size,
        "window": recipe.window,
        **extra,
    }
    write_export(directory, unique_tensors(model), tokenizer, config)


def write_export(
    directory: Path, tensors: dict[str, Tensor], tokenizer: Path, config: dict[str, Any]
) -> None:
    """The folder that `load_model` reads, whole or not at all; `config` names the model they belong to.

    Raises UserError where the weights cannot be written, as on a full disk.
    """
    partial = directory.with_name(f".partial-{directory.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(tensors, partial / "model.safetensors")
    except SafetensorError as error:  # what it makes of an OSError
        raise UserError(f"{directory} cannot be written: {error}: free some space") from error
    shutil.copy(tokenizer, partial / "tokenizer.json")
    (partial / "config.json").write_text(json.dumps(config, indent=2))
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(partial, directory)


def load_model(directory: Path) -> nn.Module:
    """The model of an exported folder, in eval mode and float32 where its weights are packed integers.

    Raises UserError where the folder is not one, or a parameter is not finite.
    """
    directory = Path(directory)
    try:
        config = json.loads((directory / "config.json").read_text())
        tensors = load_file(directory / "model.safetensors")
    except FileNotFoundError as error:
        raise UserError(
            f"{directory} holds no exported model ({Path(error.filename or '').name} is missing)"
        ) from None
    except Exception as error:
        raise UserError(f"{directory}: the exported model cannot be read: {error}") from error
    exported = parse_section(Exported, {"model": config["model"]}, f"{directory}/config.json")
    model = build_model(exported.model, config["vocab_size"])
    tensors = restore(tensors, {name: tensor.shape for name, tensor in model.state_dict().items()})
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    tied = set(model.state_dict()) - set(unique_tensors(model))
    if unexpected or set(missing) - tied:
        raise UserError(
            f"{directory}: the weights do not fit the model: missing {sorted(set(missing) - tied)}, "
            f"unexpected {sorted(unexpected)}"
        )
    if bad := first_non_finite(model.named_parameters()):
        raise UserError(f"{directory}: parameter {bad} holds NaN or infinity: export the model anew")
    return model.eval()


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state of the model, tied tensors once (safetensors refuses shared memory)."""
    seen: set[int] = set()
    unique = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            unique[name] = tensor
        seen.add(tensor.data_ptr())
    return unique
