"""The recipe's `training.gradient_cache`: gradients that are used again, and when the cache gives up."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bkray.config.section import Count, Section


class AdaptiveThreshold(Section):
    """Move the threshold toward a share of hits: 1 - threshold grows where there are too few."""

    hit_rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Share of the steps that is to hit."""
    low: Annotated[float, Field(ge=-1.0, lt=1.0)] = 0.9
    high: Annotated[float, Field(gt=-1.0, lt=1.0)] = 0.99999
    """Bounds of the threshold."""
    gain: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """A step multiplies 1 - threshold by exp(gain (hit_rate - hit))."""


class Reuse(Section):
    """What every kind has: how a gradient is used again, and when the audit ends it."""

    scale: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """What a cached gradient is multiplied by."""
    first_audits: Count = 5
    """Hits at the start that are computed all the same, to compare; none before them reuses anything."""
    audit: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the later hits that are computed too."""
    least_cosine: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.9
    """The cache is switched off where the last audits' mean cosine to the true gradient is below this."""
    most_rise: Annotated[float, Field(gt=0.0)] = 0.02
    """And where the smoothed training loss is above its lowest value by more than this share."""


class Similar(Reuse):
    """The kinds that look for a batch like this one among those of the last steps."""

    threshold: Annotated[float, Field(ge=-1.0)] = 0.9999
    """Cosine of two batches' mean token embeddings from which on they count as alike; above 1 none do."""
    adapt: AdaptiveThreshold | None = None
    max_age: Count = 20
    """Steps after which a gradient is too old."""
    max_bytes: Count = 1_000_000_000
    """Memory of a rank for cached gradients; a checkpoint holds as much. The oldest go first."""

    @model_validator(mode="after")
    def _within_bounds(self) -> Similar:
        if self.adapt and not self.adapt.low <= self.threshold <= self.adapt.high:
            raise ValueError(
                f"threshold {self.threshold:g} must lie within adapt.low {self.adapt.low:g} and adapt.high "
                f"{self.adapt.high:g}: it is where the adaptation starts"
            )
        return self


class StaleGradient(Similar):
    """A hit takes the cached gradient."""

    kind: Literal["stale"]


class ControlVariate(Similar):
    """A hit takes the cached gradient c, with probability `audit` c + (g - c) / audit: unbiased, given c."""

    kind: Literal["control_variate"]
    audit: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Probability with which a later hit computes its true gradient g."""


class EveryKSteps(Reuse):
    """One step in `steps` computes a gradient, whatever the batches are; those between take it again."""

    kind: Literal["every"]
    steps: Annotated[int, Field(ge=2)] = 2


GradientReuse = Annotated[StaleGradient | ControlVariate | EveryKSteps, Field(discriminator="kind")]
