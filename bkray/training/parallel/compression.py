"""Gradient compression: torch's communication hooks for DDP, and what of them a checkpoint must keep."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as powersgd
from torch.nn.parallel import DistributedDataParallel

from bkray.config.parallel import GradientCompression, PowerSGD

ONE_BUCKET = 1e6
"""MiB. PowerSGD sends when an answer arrives: with several buckets on gloo, each rank in another order."""
_MIN_RATE = 2  # torch's: what would travel as more than half of itself travels whole


def compress(ddp: DistributedDataParallel, settings: GradientCompression, steps: int) -> LowRank | None:
    """Register the hook of `settings` for a run of `steps` steps; what it remembers, where it does."""
    if isinstance(settings, PowerSGD):
        low_rank = LowRank(settings, steps, next(ddp.parameters()).device)
        ddp.register_comm_hook(low_rank.state, powersgd.powerSGD_hook)
        return low_rank
    everyone: Any = dist.group.WORLD
    hooks: dict[str, Any] = {
        "fp16": default_hooks.fp16_compress_hook,
        # torch refuses its own by name where there is no NCCL; gloo adds up bfloat16 as well
        "bf16": lambda _, bucket: default_hooks.bf16_compress_hook(everyone, bucket),
    }
    ddp.register_comm_hook(None, hooks[settings.kind])
    return None


class LowRank:
    """PowerSGD's memory: the errors that this rank still owes, and the bases of the last step.

    The pass that settles DDP's buckets counts as its first step.
    """

    def __init__(self, settings: PowerSGD, steps: int, device: torch.device) -> None:
        self.device, self.rank = device, settings.rank
        self.first = 1 + max(1, round(settings.start * steps))
        self.state = powersgd.PowerSGDState(
            None,
            matrix_approximation_rank=self.rank,
            start_powerSGD_iter=self.first,
            min_compression_rate=_MIN_RATE,
            orthogonalization_epsilon=1e-8,  # an expert without tokens has a gradient of zeros
        )

    def flops(self, model: nn.Module) -> float:
        """FLOPs of one rank in the last step: three products of every compressed matrix with a thin one."""
        if self.state.iter <= self.first:
            return 0.0
        total = 0.0
        for parameter in model.parameters():
            rows = parameter.shape[0] if parameter.ndim else 1
            columns = parameter.numel() // max(1, rows)
            rank = min(rows, columns, self.rank)
            if (rows + columns) * rank * _MIN_RATE < rows * columns:
                total += 6.0 * rank * rows * columns
        return total

    def state_dict(self) -> dict[str, Any]:
        """A collective call: every rank's errors are in it."""
        size = dist.get_world_size()
        errors = {}
        for bucket, error in self.state.error_dict.items():
            gathered = [torch.empty_like(error) for _ in range(size)]
            dist.all_gather(gathered, error)
            errors[bucket] = gathered
        return {
            "iteration": self.state.iter,
            "errors": errors,
            "p": dict(self.state.p_memory_dict),
            "q": dict(self.state.q_memory_dict),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on; at another world size every rank takes the mean of the errors, which keeps their mean."""
        rank, size = dist.get_rank(), dist.get_world_size()
        owed = {
            bucket: errors[rank] if len(errors) == size else torch.stack(errors).mean(0)
            for bucket, errors in state["errors"].items()
        }
        self.state.iter = state["iteration"]
        self.state.error_dict = self._copied(owed)
        self.state.p_memory_dict, self.state.q_memory_dict = (
            self._copied(state["p"]),
            self._copied(state["q"]),
        )

    def _copied(self, by_bucket: dict[int, Tensor]) -> dict[int, Tensor]:
        return {bucket: tensor.to(self.device, copy=True) for bucket, tensor in by_bucket.items()}
