"""What every stage gets and what it reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bkray.config import Recipe
from bkray.runtime.artifacts import Artifact
from bkray.runtime.plan import Plan, Stage

if TYPE_CHECKING:
    from bkray.reporting.progress import Line
    from bkray.training import Ledger


@dataclass(frozen=True)
class Work:
    """What a stage gets: where to write, what to read, how many CPUs there are."""

    stage: Stage
    plan: Plan
    directory: Path
    inputs: dict[str, Artifact]
    cpus: int
    line: Line

    @property
    def recipe(self) -> Recipe:
        return self.plan.recipe

    @property
    def source(self) -> Artifact:
        """The first input."""
        return next(iter(self.inputs.values()))


@dataclass
class Outcome:
    """What a stage reports; it becomes part of the manifest."""

    rows: int
    summary: str
    removed: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    ledger: Ledger | None = None
    """What the stage spent; its seconds are noted anyway."""
    details: dict[str, Any] = field(default_factory=dict)
