"""The finished model as a folder that anyone can load: safetensors, tokenizer.json, config.json.

config.json holds the digests of the other two: a folder whose files were mixed up or damaged is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
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

_DIGESTS = "sha256"  # key of config.json; exports of earlier versions have none


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
    digests = {name: _digest(partial / name) for name in ("model.safetensors", "tokenizer.json")}
    (partial / "config.json").write_text(json.dumps({**config, _DIGESTS: digests}, indent=2))
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(partial, directory)


def load_model(directory: Path) -> nn.Module:
    """The model of an exported folder, in eval mode and float32 where its weights are packed integers.

    Raises UserError where the folder is not one, its files do not belong together, or a parameter is not
    finite.
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
    if words := misfit(model, tensors):
        raise UserError(f"{directory}: {words}")
    model.load_state_dict(_restored(model, tensors), strict=False)  # tied tensors are there once
    if bad := first_non_finite(model.named_parameters()):
        raise UserError(f"{directory}: parameter {bad} holds NaN or infinity: export the model anew")
    if words := damage(directory, config):
        raise UserError(f"{directory}: {words}")
    return model.eval()


def damage(directory: Path, config: Mapping[str, Any]) -> str:
    """Which file of the folder is not the one exported with `config`, in words; empty where none is."""
    for name, expected in config.get(_DIGESTS, {}).items():
        if not (directory / name).exists():
            return f"{name} is missing: copy the folder anew"
        if _digest(directory / name) != expected:
            return (
                f"{name} is not the file that was exported, whose sha256 is in config.json: copy the folder "
                f"anew or, where you changed the file, remove {_DIGESTS} from config.json"
            )
    return ""


def misfit(model: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """How the names and shapes of exported `tensors` differ from those of `model`, in words; empty where they
    do not. Both may be on the meta device."""
    expected = model.state_dict()
    try:
        found = _restored(model, tensors)
    except (RuntimeError, IndexError) as error:
        return f"the packed weights do not fit the model of config.json: {error}"
    tied = {_place(expected[name]) for name in found if name in expected}
    missing = [name for name, tensor in expected.items() if name not in found and _place(tensor) not in tied]
    differing = [
        f"{name} is {tuple(tensor.shape)} and should be {tuple(expected[name].shape)}"
        for name, tensor in found.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    faults = [f"{name} is missing" for name in missing] + differing
    faults += [f"{name} is unexpected" for name in found if name not in expected]
    more = f", and {len(faults) - 4} more" if len(faults) > 4 else ""
    return f"the weights do not fit the model of config.json: {', '.join(faults[:4])}{more}" if faults else ""


def _restored(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return restore(tensors, {name: tensor.shape for name, tensor in model.state_dict().items()})


def _place(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor lies, on the meta device as well: the same for tied ones."""
    return tensor.untyped_storage()._cdata, int(tensor.storage_offset())


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state of the model, tied tensors once (safetensors refuses shared memory)."""
    seen: set[int] = set()
    unique = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            unique[name] = tensor
        seen.add(tensor.data_ptr())
    return unique
