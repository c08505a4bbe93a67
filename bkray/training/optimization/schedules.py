"""Learning-rate schedules: torch's where torch has them, behind one warm-up, and two that look at the loss.

warm-up ─► linear | cosine | constant | wsd | restarts        one step after the other: SequentialLR
one_cycle                                                     OneCycleLR, its rise is the warm-up
warm-up ─► plateau      told of every validation loss         ReduceLROnPlateau
loss_trend              told of every logged training loss    LossTrendLR
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from bkray.config.schedule import LossTrend, OneCycle, Plateau, WarmRestarts, WarmupStableDecay
from bkray.config.training import Training


def build_schedule(optimizer: torch.optim.Optimizer, training: Training, steps: int) -> LRScheduler:
    """Warm-up in equal steps, the last of them at `training.lr` exactly, then `training.schedule`.

    Call `step` after every optimizer step. What decays to zero would reach it at `steps`.
    """
    settings, rising = training.schedule, round(training.warmup * steps)
    if isinstance(settings, OneCycle):
        return OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=steps,
            pct_start=training.warmup,
            div_factor=1 / settings.start,
            final_div_factor=settings.start / settings.end,
            cycle_momentum=False,
        )
    if isinstance(settings, LossTrend):
        return LossTrendLR(optimizer, settings, steps, rising)
    if isinstance(settings, Plateau):
        return PlateauLR(optimizer, settings, rising)
    left = max(1, steps - rising)
    if isinstance(settings, WarmupStableDecay):
        falling = max(1, round(settings.decay * left))
        parts = [(left - falling, _flat(optimizer)), (falling, _line(optimizer, 1.0, 0.0, falling))]
    elif isinstance(settings, WarmRestarts):
        parts = [(left, _restarts(optimizer, settings, left))]
    elif settings.kind == "cosine":
        parts = [(left, CosineAnnealingLR(optimizer, left))]
    elif settings.kind == "linear":
        parts = [(left, _line(optimizer, 1.0, 0.0, left))]
    else:
        parts = [(left, _flat(optimizer))]
    if rising > 1:
        parts.insert(0, (rising, _line(optimizer, 1 / rising, 1.0, rising - 1)))
    elif rising:
        parts.insert(0, (rising, _flat(optimizer)))
    return _sequence(optimizer, parts)


def _line(optimizer: torch.optim.Optimizer, start: float, end: float, steps: int) -> LRScheduler:
    return LinearLR(optimizer, start, end, total_iters=steps)


def _flat(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return ConstantLR(optimizer, factor=1.0, total_iters=0)


def _restarts(optimizer: torch.optim.Optimizer, settings: WarmRestarts, steps: int) -> LRScheduler:
    """Cycles of growing length that fill `steps`: by rounding the last may end a little before zero."""
    units = sum(settings.growth**cycle for cycle in range(settings.cycles))
    return CosineAnnealingWarmRestarts(optimizer, T_0=-(-steps // units), T_mult=settings.growth)


def _sequence(optimizer: torch.optim.Optimizer, parts: list[tuple[int, LRScheduler]]) -> LRScheduler:
    """One schedule after the other, each for so many steps."""
    parts = [part for part in parts if part[0]]
    if len(parts) == 1:
        return parts[0][1]
    milestones = [sum(length for length, _ in parts[: number + 1]) for number in range(len(parts) - 1)]
    return SequentialLR(optimizer, [schedule for _, schedule in parts], milestones)


class PlateauLR(LRScheduler):
    """A warm-up, then torch's ReduceLROnPlateau, which `observe_validation` drives."""

    def __init__(self, optimizer: torch.optim.Optimizer, settings: Plateau, rising: int) -> None:
        self.rising = rising
        self.plateau = ReduceLROnPlateau(optimizer, factor=settings.factor, patience=settings.patience)
        super().__init__(optimizer)
        self.plateau.min_lrs = [settings.floor * float(base) for base in self.base_lrs]

    def get_lr(self) -> list[float]:  # type: ignore[override]
        if self.last_epoch >= max(1, self.rising):
            return [float(group["lr"]) for group in self.optimizer.param_groups]
        return [float(base) * (self.last_epoch + 1) / max(1, self.rising) for base in self.base_lrs]

    def observe_validation(self, loss: float) -> None:
        if self.last_epoch >= self.rising:
            self.plateau.step(loss)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        return {**state, "plateau": self.plateau.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        self.plateau.load_state_dict(state.pop("plateau"))
        super().load_state_dict(state)


class LossTrendLR(LRScheduler):
    """base x trend x warm-up x decay: `observe` moves the trend within its bounds, a restart sets it to 1.

    The rate is always computed from the base rate, so bounds hold for good and nothing ratchets.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, settings: LossTrend, steps: int, rising: int
    ) -> None:
        self.settings, self.steps, self.rising = settings.model_dump(), steps, rising
        self._reset()
        super().__init__(optimizer)

    def _reset(self) -> None:
        self.trend, self.smoothed = 1.0, math.nan
        self.falling = self.flat = 0

    @property
    def _since_restart(self) -> int:
        every = self.settings["restart_every"]
        return self.last_epoch % every if every else self.last_epoch

    def get_lr(self) -> list[float]:  # type: ignore[override]
        if self.last_epoch and not self._since_restart:
            self._reset()
        warmed = min(1.0, (self._since_restart + 1) / max(1, self.rising))
        decay = self.settings["decay"] * self.steps
        left = min(1.0, max(0.0, (self.steps - self.last_epoch) / decay)) if decay else 1.0
        return [float(base) * self.trend * warmed * left for base in self.base_lrs]

    def observe(self, loss: float) -> None:
        """Take in the mean training loss since the last call; the next `step` acts on it."""
        before, keep = self.smoothed, self.settings["smoothing"]
        self.smoothed = loss if math.isnan(before) else keep * before + (1 - keep) * loss
        if math.isnan(before) or self._since_restart < self.rising:
            return
        fell = (before - self.smoothed) / abs(before) > self.settings["threshold"] if before else False
        self.falling, self.flat = (self.falling + 1, 0) if fell else (0, self.flat + 1)
        if self.falling == self.settings["patience"]:
            self.trend, self.falling = min(self.settings["high"], self.trend * self.settings["up"]), 0
        elif self.flat == self.settings["patience"]:
            self.trend, self.flat = max(self.settings["low"], self.trend * self.settings["down"]), 0
