"""What every part of a recipe is made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(gt=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of a recipe: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def changed(self, key: str) -> bool:
        """Whether `key` has another value than its default: a saved recipe spells defaults out."""
        return getattr(self, key) != type(self).model_fields[key].default


def named(value: Any) -> Any:
    """A kind by its name alone: `schedule: wsd` is short for `schedule: {kind: wsd}`."""
    return {"kind": value} if isinstance(value, str) else value
