"""One model on several ranks, as `training.parallel` says; it works alone too, without a process group.

    ddp      every rank holds all of it; DDP averages the gradients, bucket by bucket, while backward goes on
    zero1    as ddp, but a rank updates its share of the parameters and keeps the state of that (`zero1.py`)
    fsdp2    a rank holds its share of parameters, gradients and state (`fsdp2.py`)

What a checkpoint keeps is whole, in the format of one rank alone, whichever of them wrote it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bkray.config.parallel import PowerSGD
from bkray.config.training import Training
from bkray.training.cost.flops import optimizer_flops
from bkray.training.objective import Objective
from bkray.training.optimization.optimizers import build_optimizer
from bkray.training.parallel import fsdp2
from bkray.training.parallel.compression import ONE_BUCKET, LowRank, compress
from bkray.training.parallel.world import World
from bkray.training.parallel.zero1 import ShardedOptimizer


class Parallel:
    """How `given` is trained on all ranks of the world for `steps` steps.

    `model` is what is trained: `given` itself, or with fsdp2 a sharded copy of it, while `given` is without
    parameters until `give_back`.
    """

    def __init__(self, given: nn.Module, training: Training, steps: int) -> None:
        self.world, self.training, self.given = World.current(), training, given
        self.kind = training.parallel if self.world.size > 1 else "alone"
        self.model = fsdp2.sharded_copy(given) if self.kind == "fsdp2" else given
        self.low_rank: LowRank | None = None
        self._ddp: DistributedDataParallel | None = None
        self._steps = steps

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module`, whose parameters are those of `model`, its gradients averaged over the ranks."""
        if self.kind not in {"ddp", "zero1"}:
            return module
        compression = self.training.gradient_compression
        self._ddp = DistributedDataParallel(
            module,
            bucket_cap_mb=ONE_BUCKET if isinstance(compression, PowerSGD) else self.training.bucket_mb,
            gradient_as_bucket_view=self.training.gradient_as_bucket_view,
        )
        if compression:
            self.low_rank = compress(self._ddp, compression, self._steps)
        return self._ddp

    @property
    def settles(self) -> bool:
        """Whether the first backward pass decides in which order later ones add up.

        After it DDP puts the gradients into buckets anew, in the order in which they came. Of three terms on
        the sum depends on its order, and low-rank compression keeps its errors by bucket.
        """
        return self._ddp is not None and (self.world.size > 2 or self.low_rank is not None)

    def settle(self, objective: Objective, *inputs: Any) -> None:
        """A pass whose gradients are thrown away, so that a resumed run goes on with the same bits.

        `inputs` are what `objective` takes.
        """
        assert self._ddp is not None
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        self.model.train()
        loss = self._ddp(*inputs).mean()
        terms = objective.auxiliary_losses(1.0)
        with objective.compiling():
            sum(terms.values(), loss).backward()
        objective.auxiliary_losses(1.0)
        objective.measurements()
        self.model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)

    def optimizer(self) -> torch.optim.Optimizer:
        whole = build_optimizer(self.model, self.training)
        return ShardedOptimizer(whole, self.world.rank, self.world.size) if self.kind == "zero1" else whole

    def optimizer_flops(self, optimizer: torch.optim.Optimizer) -> float:
        """FLOPs of one optimizer step of all ranks together."""
        size = self.world.size
        match self.kind:
            case "zero1":
                return optimizer_flops(optimizer)
            case "fsdp2":  # an element is updated by one rank, a gathered matrix is orthogonalised by all
                return optimizer_flops(optimizer, muon_times=size)
        return optimizer_flops(optimizer, size, size)

    def compression_flops(self) -> float:
        """FLOPs of all ranks together for the low-rank products of the last step."""
        return self.low_rank.flops(self.model) * self.world.size if self.low_rank else 0.0

    def accumulating(self) -> AbstractContextManager[Any]:
        """A pass in it adds to the gradient and sends nothing; the next outside of it sends the sum.

        With fsdp2 every pass sends its gradients: to keep them they would have to be whole on every rank.
        """
        return self._ddp.no_sync() if self._ddp is not None else nullcontext()

    def clip(self, largest: float) -> float:
        """Scale the gradient down to a norm of `largest`; returns the norm that it had.

        Where that is not finite the gradient stays as it is, so that it can be seen what is not.
        """
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = fsdp2.whole(nn.utils.get_total_norm(gradients))
        if norm.isfinite():
            nn.utils.clip_grads_with_norm_(self.model.parameters(), largest, norm)
        return float(norm)

    def parts(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """What a checkpoint keeps of model and optimizer; reading a state is a collective call."""
        if self.kind == "fsdp2":
            return {
                "model": fsdp2.GatheredModel(self.model),
                "optimizer": fsdp2.GatheredOptimizer(optimizer),
            }
        kept = {"model": self.model, "optimizer": optimizer}
        return {**kept, "compression": self.low_rank} if self.low_rank else kept

    def give_back(self) -> None:
        """Put what was trained into the given model, whole on every rank; a collective call."""
        if self.kind == "fsdp2":
            fsdp2.fill(self.given, self.model)
