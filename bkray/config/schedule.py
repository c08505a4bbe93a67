"""The recipe's `training.schedule`: what the learning rate does after the warm-up."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from bkray.config.section import Count, Section, Share, named

Factor = Annotated[float, Field(gt=0.0, le=1e3)]


class PlainSchedule(Section):
    """Straight to zero, as a cosine to zero, or not at all."""

    kind: Literal["linear", "cosine", "constant"]


class WarmupStableDecay(Section):
    """The full rate until the last part of the run, then straight to zero (arXiv 2404.06395)."""

    kind: Literal["wsd"]
    decay: Share = 0.2
    """Share of the steps after the warm-up."""


class OneCycle(Section):
    """Up and down as halves of a cosine (arXiv 1708.07120); `training.warmup` is the share of the rise."""

    kind: Literal["one_cycle"]
    start: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.04
    """The first rate, a share of `training.lr`."""
    end: Annotated[float, Field(gt=0.0, lt=1.0)] = 4e-6
    """The last one."""


class WarmRestarts(Section):
    """Cosines to zero, one after the other (SGDR, arXiv 1608.03983)."""

    kind: Literal["restarts"]
    cycles: Annotated[int, Field(ge=2)] = 3
    growth: Count = 2
    """Each cycle is so many times as long as the one before."""

    def fit(self, steps: int) -> bool:
        """Whether all cycles have a step at least, of so many."""
        needed = 0
        for cycle in range(self.cycles):
            needed += self.growth**cycle
            if needed > steps:
                return False
        return True


class Plateau(Section):
    """Lower the rate where the validation loss does not fall."""

    kind: Literal["plateau"]
    factor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    patience: Annotated[int, Field(ge=0)] = 2
    """Looks at the validation split without a fall that are let pass."""
    floor: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01
    """Lowest rate, a share of `training.lr`."""


class LossTrend(Section):
    """Raise the rate while the smoothed training loss falls steadily, lower it where it does not."""

    kind: Literal["loss_trend"]
    up: Annotated[float, Field(gt=1.0)] = 1.1
    down: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.7
    """What the rate is multiplied by after `patience` logged lines in a row that fall, or do not."""
    patience: Count = 3
    threshold: Annotated[float, Field(ge=0.0)] = 1e-3
    """Fall of the smoothed loss from line to line, relative, that counts as one."""
    smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.7
    """Weight of the past in the smoothed loss."""
    low: Factor = 0.1
    high: Factor = 2.0
    """Bounds of the rate, in units of `training.lr`."""
    restart_every: Count | None = None
    """Steps after which the rate starts anew from `training.lr`, with its warm-up."""
    decay: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2
    """Share of the steps at the end in which the rate goes straight to zero."""

    @model_validator(mode="after")
    def _bounds(self) -> LossTrend:
        if not self.low <= 1.0 <= self.high:
            raise ValueError(f"low {self.low} and high {self.high} must lie on both sides of 1")
        return self


Schedule = Annotated[
    PlainSchedule | WarmupStableDecay | OneCycle | WarmRestarts | Plateau | LossTrend,
    Field(discriminator="kind"),
    BeforeValidator(named),
]
"""`schedule: wsd` is short for `schedule: {kind: wsd}`."""
