"""How a training pass runs on the hardware: precision, activation checkpointing, torch.compile.

    model ─► checkpointing blocks ─► torch.compile ─► DDP ─► under autocast

DDP stays outside of the compiled module: its own splitting of graphs refuses checkpointed blocks. Both share
the model's parameters, so state and exports have the model's own names.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import nn

from bkray.config import UserError
from bkray.config.training import Training
from bkray.model import LanguageModel

_REMEDY = "set training.compile=false"


def prepare(model: nn.Module, training: Training) -> nn.Module:
    """`model` as the recipe wants its training pass, before DDP; the parameters stay the model's own.

    Raises UserError where this machine or the model cannot do it.
    """
    if training.activation_checkpointing:
        if not isinstance(model, LanguageModel):
            raise UserError(
                f"training.activation_checkpointing has no effect on {type(model).__name__}: remove it"
            )
        model.checkpointing = True
    if not training.compile:
        return model
    if next(model.parameters()).device.type == "cpu":
        check_compiler()
    return cast(nn.Module, torch.compile(model, dynamic=False))


def autocast(training: Training, device: torch.device) -> torch.autocast:
    """The context of a forward pass; logits come out of it in its precision, losses are taken outside."""
    return torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bf16")


@contextmanager
def products(training: Training, device: torch.device) -> Iterator[None]:
    """Where a forward and a backward pass lie: what stays float32 in a bf16 run takes TF32 on a GPU.

    TF32 keeps more digits than bfloat16 and is many times faster than float32. Other runs of the process are
    left as they are.
    """
    if training.precision != "bf16" or device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def check_compiler() -> None:
    """Raise UserError where torch.compile has no C++ compiler or no header files of Python to work with."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UserError(
            f"training.compile needs a C++ compiler, but {compiler} is not on the PATH: install one "
            f"(Debian: apt install g++), set CXX to yours, or {_REMEDY}"
        )
    headers = Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").exists():
        raise UserError(
            f"training.compile needs Python's header files, but {headers} has no Python.h: install them "
            f"(Debian: apt install python3-dev), or {_REMEDY}"
        )


def check_compiles(model: nn.Module, window: int) -> None:
    """Raise UserError where `model`, on any device, the meta device included, is not one graph to torch.

    Where torch breaks the graph, part of the model would run as before, without a word.
    """
    device = next(model.parameters()).device
    with compile_errors(), torch.no_grad():
        torch.compile(model, backend="eager", fullgraph=True, dynamic=False)(
            torch.zeros(1, window, dtype=torch.int64, device=device)
        )


@contextmanager
def compile_errors() -> Iterator[None]:
    """Turn what torch.compile cannot do into one UserError."""
    from torch._dynamo.exc import TorchDynamoException  # late: it takes seconds to import

    try:
        yield
    except TorchDynamoException as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(
            f"training.compile: torch cannot compile the model ({' '.join(lines[:2])}): mend the model, "
            f"or {_REMEDY}"
        ) from error
