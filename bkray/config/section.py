"""What every part of a recipe is made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Share = Annotated[float, Field(gt=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
_HIGHEST_RATE = 1e30  # float32 holds what an update makes of it, so that a run which diverges can say where


def _rate(value: float) -> float:
    if value > _HIGHEST_RATE:
        raise ValueError(f"{value:g} is above {_HIGHEST_RATE:g}, beyond float32 in an update: lower it")
    return value


Rate = Annotated[float, Field(gt=0.0), AfterValidator(_rate)]
"""A learning rate."""


def named(value: Any) -> Any:
    """For a BeforeValidator: `key: NAME` is short for `key: {kind: NAME}`."""
    return {"kind": value} if isinstance(value, str) else value


class Section(BaseModel):
    """A part of a recipe: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def changed(self, key: str) -> bool:
        """Whether `key` has another value than its default: a saved recipe spells defaults out."""
        return getattr(self, key) != type(self).model_fields[key].default
