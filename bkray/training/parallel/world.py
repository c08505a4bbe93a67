"""The ranks that train together: torch.distributed's process group, or one process alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> World:
        """The initialised process group, or a world of one."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    def part(self, batch: np.ndarray) -> np.ndarray:
        """This rank's rows of a global batch: the parts of all ranks, one after the other, are the batch."""
        size, rest = divmod(len(batch), self.size)
        if rest:
            raise ValueError(f"the batch of {len(batch)} must be a multiple of the world size {self.size}")
        return batch[self.rank * size : (self.rank + 1) * size]

    def total(self, values: Tensor) -> Tensor:
        """The sum over all ranks, on every rank."""
        if self.size == 1:
            return values
        there = _reachable(values)
        dist.all_reduce(there)
        return there.to(values.device)

    def gather(self, values: Tensor) -> list[Tensor]:
        """Every rank's tensor, on every rank; all have one shape."""
        if self.size == 1:
            return [values]
        there = _reachable(values)
        gathered = [torch.empty_like(there) for _ in range(self.size)]
        dist.all_gather(gathered, there)
        return [each.to(values.device) for each in gathered]


def _reachable(values: Tensor) -> Tensor:
    """Where the process group reaches them: NCCL takes tensors of the GPU alone."""
    return values.cuda() if dist.get_backend() == "nccl" else values
