"""FSDP2 (torch's fully_shard): a rank holds its share of parameters, gradients and optimizer state.

    every block, and all that is outside of the blocks ─► one group: gathered for its pass, and let go again

AdamW takes shares as they are; Muon gathers its matrices, and every rank orthogonalises all of them. What of
torch.distributed is needed here alone takes a second to import, so it is imported late.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bkray.config import UserError
from bkray.model import LanguageModel
from bkray.training.optimization.optimizers import optimizers_of
from bkray.training.parallel.shares import is_share, share_of, whole


def sharded_copy(model: nn.Module) -> nn.Module:
    """A copy of `model` that is divided among the ranks; `model` itself is left without parameters.

    Raises UserError for a parameter that has no dimension to divide.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for name, parameter in model.named_parameters():
        if not parameter.ndim:
            raise UserError(
                f"training.parallel fsdp2 cannot divide parameter {name}, a single number: give it the shape "
                "(1,), or set training.parallel to ddp or zero1"
            )
    mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
    sharded = copy.deepcopy(model)
    for block in sharded.blocks if isinstance(sharded, LanguageModel) else ():
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    for parameter in model.parameters():
        parameter.data = parameter.data.new_empty(0)
    return sharded


def fill(model: nn.Module, sharded: nn.Module) -> None:
    """Put parameters and buffers of `sharded`, gathered, into `model`; a collective call."""
    with torch.no_grad():
        for parameter, share in zip(model.parameters(), sharded.parameters(), strict=True):
            parameter.data = whole(share).clone()
        for buffer, there in zip(model.buffers(), sharded.buffers(), strict=True):
            buffer.copy_(there)


class GatheredModel:
    """The state of a sharded model as that of a whole one, on rank 0; any rank of any world loads it."""

    def __init__(self, model: nn.Module) -> None:
        from torch.distributed.checkpoint.state_dict import StateDictOptions

        self.model, self.options = model, StateDictOptions(full_state_dict=True, cpu_offload=True)

    def state_dict(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import get_model_state_dict

        return get_model_state_dict(self.model, options=self.options)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        from torch.distributed.checkpoint.state_dict import set_model_state_dict

        set_model_state_dict(self.model, state, options=self.options)


class GatheredOptimizer:
    """The state of an optimizer of shares, in the format of one of whole parameters, on rank 0."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        return _gathered(self.optimizer.state_dict())  # type: ignore[no-any-return]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)
        for one in optimizers_of(self.optimizer):
            for parameter, own in one.state.items():
                for name, value in own.items():
                    own[name] = share_of(value, parameter) if value.ndim else value


def _gathered(state: Any) -> Any:
    """The same with every share gathered, one after the other; only rank 0 keeps them."""
    if isinstance(state, dict):
        return {key: _gathered(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_gathered(value) for value in state]
    if isinstance(state, Tensor) and is_share(state):
        gathered = whole(state)
        return gathered.cpu() if dist.get_rank() == 0 else None
    return state
