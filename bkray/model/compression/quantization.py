"""Weights as integers and scales: eight bits an output channel, four bits a group of inputs.

    weight (R, C) ─► scale = largest magnitude / Q ─► round(weight / scale) in [-Q, Q] ─► packed
    int8: one scale a row, Q = 127          int4: one scale a row and group of 32 or 64, Q = 7, two to a byte

Symmetric rounding to the nearest (Jacob et al., arXiv 1712.05877; groups as in GPTQ, arXiv 2210.17323). It
makes files smaller; a loaded model computes in float32 with the rounded weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bkray.config import UserError
from bkray.model.experts import Experts

_LARGEST = {8: 127, 4: 7}
_SCALE = ".scale"


def quantize(weight_RC: Tensor, bits: int, group: int | None = None) -> tuple[Tensor, Tensor]:
    """Packed integers and scales of a matrix.

    bits 8: int8 (R, C) and float32 (R, 1). bits 4: uint8 (R, ceil(C / group) * group / 2), the earlier column
    in the low half, and float16 (R, ceil(C / group)); columns beyond C count as zero.
    Raises UserError for other bits, for a group where bits is 8, and for an odd or missing one where it is 4.
    """
    if bits not in _LARGEST:
        raise UserError(f"weights can be quantized to 8 or 4 bits, not {bits}")
    if (bits == 8) != (group is None) or (group is not None and (group < 2 or group % 2)):
        raise UserError(f"group {group}: 4 bits need an even group of columns, 8 bits take none")
    weight = weight_RC.detach().float()
    if group is None:
        parts = weight.unsqueeze(1)
    else:
        parts = F.pad(weight, (0, -weight.shape[1] % group)).unflatten(1, (-1, group))
    largest = _LARGEST[bits]
    scale = parts.abs().amax(-1) / largest
    kind = torch.float32 if group is None else torch.float16
    least = torch.finfo(kind).tiny if group is None else 2.0**-24  # float16's first number above 0
    scale = scale.clamp(least, torch.finfo(kind).max).to(kind)
    whole = (parts / scale.float().unsqueeze(-1)).round().clamp(-largest, largest).to(torch.int8).flatten(1)
    if group is None:
        return whole, scale
    low, high = (whole + 8).to(torch.uint8).unflatten(1, (-1, 2)).unbind(-1)
    return low | high << 4, scale


def dequantize(packed: Tensor, scale: Tensor, columns: int) -> Tensor:
    """The float32 matrix (R, columns) that `quantize` rounded to."""
    if packed.dtype == torch.int8:
        return packed.float() * scale
    halves = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1).to(torch.int8) - 8
    parts = halves.unflatten(1, (scale.shape[1], -1)).float() * scale.float().unsqueeze(-1)
    return parts.flatten(1)[:, :columns].contiguous()


def quantize_model(
    model: nn.Module, tensors: Mapping[str, Tensor], bits: int, group: int | None = None
) -> dict[str, Tensor]:
    """`tensors`, the state of `model`, with its matrices as `<name>.int8` or `.int4` and `<name>.scale`.

    Matrices are the weights of linear and recurrent layers, those of experts, and embeddings; these, whose
    rows are the output channels of a tied head, keep eight bits. Vectors, taps and phases stay as they are.
    Raises UserError where there is no matrix.
    """
    linear, tables = set(_matrices(model)) & set(tensors), set(_tables(model)) & set(tensors)
    if not linear:
        raise UserError(f"{type(model).__name__} has no linear layer to quantize")
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in linear | tables:
            own, size = (8, None) if name in tables else (bits, group)
            rows = tensor.transpose(1, 2).flatten(0, 1) if tensor.ndim == 3 else tensor
            result[f"{name}.int{own}"], result[name + _SCALE] = quantize(rows, own, size)
        else:
            result[name] = tensor
    return result


def restore(tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The state that `quantize_model` packed, in float32; other tensors as they are."""
    result = {}
    for name, tensor in tensors.items():
        base, _, kind = name.rpartition(".")
        if kind in {"int8", "int4"} and base + _SCALE in tensors and base in shapes:
            rows, shape = dequantize(tensor, tensors[base + _SCALE], shapes[base][1]), shapes[base]
            stacked = len(shape) == 3
            result[base] = rows.unflatten(0, (shape[0], -1)).transpose(1, 2).contiguous() if stacked else rows
        elif not (name.endswith(_SCALE) and name not in shapes):
            result[name] = tensor
    return result


def _matrices(model: nn.Module) -> Iterator[str]:
    """Names of the weights of linear and recurrent layers, and of the stacks (E, in, out) of experts."""
    for prefix, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.RNNBase | Experts):
            for name, parameter in module.named_parameters(prefix, recurse=False):
                if parameter.ndim >= 2:
                    yield name


def _tables(model: nn.Module) -> Iterator[str]:
    for prefix, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            yield f"{prefix}.weight" if prefix else "weight"
