"""The recipe's `training.on_divergence`: what to do where loss, gradient or a parameter is not finite."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from bkray.config.section import Count, Section, named


class SkipStep(Section):
    """Leave the step out: weights and optimizer stay, the schedule goes on."""

    kind: Literal["skip"]
    most: Count = 3
    """Steps that a run may leave out; the next one stops it."""


class FallBack(Section):
    """Go back to the last good checkpoint and on from there with a lower rate."""

    kind: Literal["fall_back"]
    lr_factor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """What the rate of the schedule is multiplied by from then on, each time."""
    most: Count = 3
    """How often a run may fall back; the next divergence stops it."""


OnDivergence = Annotated[SkipStep | FallBack, Field(discriminator="kind"), BeforeValidator(named)]
"""`on_divergence: skip` is short for `on_divergence: {kind: skip}`."""
