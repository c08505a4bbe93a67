"""What the steps since the last line of the log measured, until the next line is written."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bkray.training.cost.telemetry import PhaseClock, memory, peak_flops
from bkray.training.parallel.world import World


class StepMetrics:
    def __init__(self, device: torch.device, precision: str, world: World) -> None:
        self.device, self.precision, self.world = device, precision, world
        self.clock = PhaseClock(device)
        self.last_loss = math.nan
        """Of the last line whose steps had one, nats a token."""
        self._loss_sum, self._losses = torch.zeros((), dtype=torch.float64), 0
        self.begin(0, 0.0)

    def begin(self, tokens: int, seconds: float) -> None:
        """Begin a line after so many tokens and seconds of training."""
        self.values: dict[str, float] = {}
        """Of the next line, by name."""
        self.model_flops = 0.0
        """Of forward and backward passes since the last line, without what is computed again."""
        self._began = (tokens, seconds)

    def observe(self, loss: Tensor) -> None:
        """Count in a step's loss on this rank."""
        self._loss_sum += loss.double().cpu()
        self._losses += 1

    def take_loss(self) -> float | None:
        """The mean over steps and ranks, from which the next begins anew; a collective call.

        None where no step had a loss: all were left out, or took a cached gradient.
        """
        total, losses = self.world.total(self._loss_sum.reshape(1).clone()).item(), self._losses
        self._loss_sum, self._losses = torch.zeros((), dtype=torch.float64), 0
        if not losses:
            return None
        self.last_loss = total / losses / self.world.size
        return self.last_loss

    def line(self, tokens: int, seconds: float) -> dict[str, float]:
        """The values; and speed, utilisation, memory and shares of the phases since the line began."""
        spent = max(seconds - self._began[1], 1e-9)
        peak = peak_flops(self.device, self.precision, torch.get_num_threads())
        return {
            "tokens_per_second": (tokens - self._began[0]) / spent,
            **self.values,
            "mfu": self.model_flops / spent / peak / self.world.size,
            **memory(self.device),
            **{f"time_{name}": share for name, share in self.clock.shares().items()},
        }

    def state_dict(self) -> dict[str, Any]:
        """Of the line that is not written yet; a collective call."""
        return {
            "values": dict(self.values),
            "loss_sums": self.world.gather(self._loss_sum.reshape(1)),
            "losses": self._losses,
            "last_loss": self.last_loss,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        sums = torch.cat(state["loss_sums"])  # at another world size their mean, which the log shows
        self._loss_sum = sums[self.world.rank].clone() if len(sums) == self.world.size else sums.mean()
        self._losses = state["losses"]
        self.values = dict(state["values"])
        self.last_loss = state["last_loss"]
