"""Tensors that are divided among ranks: torch's DTensors.

They are told by what they can do, since their module takes a second to import and most runs have none.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor


def is_share(tensor: Tensor) -> bool:
    """Whether this is a rank's share of a tensor."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """The whole of a shared tensor, on every rank; a collective call where it is one."""
    return tensor.full_tensor() if is_share(tensor) else tensor  # type: ignore[attr-defined,no-any-return]


def share_of(tensor: Tensor, parameter: Tensor) -> Tensor:
    """`tensor`, the same on every rank, divided as `parameter` is."""
    if not is_share(parameter):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def local(tensor: Tensor) -> Tensor:
    """What of a tensor is on this rank."""
    return cast(Tensor, tensor.to_local()) if is_share(tensor) else tensor  # type: ignore[attr-defined]
