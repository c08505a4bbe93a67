"""What a run charges its ledger with: passes by what they computed, updates, validation, lost steps."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from bkray.training.cost.flops import ForwardCost
from bkray.training.cost.ledger import Ledger
from bkray.training.cost.step_cost import StepCost
from bkray.training.metrics import StepMetrics
from bkray.training.objective import Objective
from bkray.training.techniques.averaging import AVERAGING_FLOPS
from bkray.training.validation import Validation


class Charges:
    """Every charge is for all ranks together; all of them make the same."""

    def __init__(
        self, ledger: Ledger, window: int, objective: Objective, metrics: StepMetrics, forward: ForwardCost
    ) -> None:
        self.ledger, self.window, self.objective, self.metrics = ledger, window, objective, metrics
        self.forward = forward
        """Of one window in eval mode."""
        self.reused = 0.0
        """Share of the frozen layers' work that the last step found done."""
        self.depth: float | None = None
        """Layers that a site of the last step went through, where sites halt."""

    def trains(self, step_cost: StepCost, optimizer_flops: float) -> None:
        """From here on a window's passes and all ranks' updates cost so much."""
        self.step_cost, self.optimizer_flops = step_cost, optimizer_flops

    def flops(self, windows: int, recomputed: bool = True) -> float:
        """Of a forward and backward pass, with what activation checkpointing computes again."""
        return windows * self.step_cost.flops(
            self.objective.length, self.depth, self.reused, recomputed=recomputed
        )

    def passes(self, windows: int, seconds: float) -> None:
        """A step's forward and backward passes over so many windows, and all else that its seconds went to.

        A collective call where activations are cached or sites halt.
        """
        self.reused = self._over_ranks("activations_reused") or 0.0
        self.depth = self._over_ranks("depth")
        self.metrics.model_flops += self.flops(windows, recomputed=False)
        tokens = windows * self.window
        self.ledger.charge("training", flops=self.flops(windows), tokens=tokens, seconds=seconds)

    def update(self, seconds: float, average: AveragedModel | None) -> None:
        """An optimizer step of so many seconds (of the host), and the average of the weights that follows."""
        self.ledger.charge("optimizer", flops=self.optimizer_flops, seconds=seconds)
        if average:
            count = sum(parameter.numel() for parameter in average.module.parameters())
            self.ledger.charge("averaging", flops=AVERAGING_FLOPS * count * self.metrics.world.size)

    def settling(self, windows: int, seconds: float) -> None:
        """The pass over so many windows with which DDP begins, at full depth."""
        flops, tokens = windows * self.step_cost.flops(self.objective.length, None), windows * self.window
        self.ledger.charge("settling", flops=flops, tokens=tokens, seconds=seconds)

    def validation(self, found: Validation, windows: int, since: float) -> None:
        """A validation over so many windows, from the moment `since` (time.perf_counter) on."""
        self.ledger.charge(
            "validation",
            flops=self.forward.at(found.depth) * found.passed,
            tokens=windows * self.window,
            seconds=time.perf_counter() - since,
        )

    def lost(self, reached: dict[str, Any], tokens: int, seconds: float) -> None:
        """Steps that were made and are not kept: what had been `reached`, beyond what the run now stands at.

        `reached` has total_flops, tokens and seconds, as a line of the log.
        """
        self.ledger.charge(
            "lost",
            flops=reached["total_flops"] - self.ledger.total_flops,
            tokens=reached["tokens"] - tokens,
            seconds=reached["seconds"] - seconds,
        )

    def _over_ranks(self, name: str) -> float | None:
        """The mean over the ranks of what each measured in as many windows; None where it is off."""
        if (measured := self.metrics.values.get(name)) is None:
            return None
        world = self.metrics.world
        return world.total(torch.tensor([measured], device=self.metrics.device)).item() / world.size
