"""What the reports are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class RunReport:
    """One run. Every part with a default may be left out; the page then goes without it."""

    name: str
    summary: Mapping[str, Any]
    """summary.json: `held_out` (bits_per_byte, nats_per_token, perplexity, split) and `ledger` (total_flops,
    by_kind: {kind: {flops, tokens, seconds}}, wall_s, tokens_seen, unique_tokens); where there are any also
    `start` (like held_out: of the model that it started from), `baselines` ({"unigram": bits per byte,
    "trigram": bits per byte}), `divergences` ([{step, what, done}]),
    `skill` (split, windows, rank_correlation: {score: Spearman's with the model's loss, null: constant}),
    steps, world_size, seed, versions. A null number stands for one that was not finite."""
    recipe: str
    """The resolved recipe, YAML."""
    metrics: Sequence[Mapping[str, Any]] = ()
    """Lines of metrics.jsonl: step and any of tokens, seconds, loss and validation_loss (nats per token),
    share, tokens_per_second, mfu, time_* (shares of the time by phase). A key that a line lacks was not
    measured there; null is a number not finite."""
    stages: Sequence[Mapping[str, Any]] = ()
    """name, rows, rejects, removed, seconds of every stage; cached of all of them or of none."""
    rejects: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Rejected rows by stage and reason, of stages that have any."""
    augmentation: Sequence[Mapping[str, Any]] = ()
    """Of every kind: kind, originals, made, unchanged (of those made), dropped ({reason: documents})."""
    difficulty: tuple[str, Sequence[float] | np.ndarray] | None = None
    """Name of the measure and its value for every training window."""
    easiest: Sequence[tuple[float, str]] = ()
    """Difficulty and text."""
    hardest: Sequence[tuple[float, str]] = ()
    samples: Sequence[tuple[str, str]] = ()
    """Prompt and what the model wrote after it."""
    notes: Sequence[str] = ()
    """What there was to warn of while it trained."""


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep."""

    name: str
    parameters: Mapping[str, Any]
    status: Literal["finished", "stopped early", "failed"]
    bits_per_byte: float | None = None  # held-out; None where the trial never got that far
    flops: float | None = None
    seconds: float | None = None
    baseline: bool = False  # the row with every technique off
    ratio: tuple[float, float, float] | None = None  # bits per byte over the baseline's: mean, low, high
    error: str = ""  # what a failed trial failed with


@dataclass(frozen=True)
class SweepReport:
    """A sweep: all of its trials, failed ones included, in the order in which they were started."""

    name: str
    trials: Sequence[Trial]
    winner: str | None = None  # name of a trial
    recipe: str = ""  # the winner's resolved recipe, YAML


@dataclass(frozen=True)
class ComparisonArm:
    """One arm of a comparison."""

    name: str
    parameters: int
    lr: float
    tried: Mapping[float, float]
    """Validation bits per byte by learning rate; infinity where it diverged."""
    step_seconds: float
    relative_time: float
    """A step's time over that of the reference's, in the same round."""
    data_seconds: float
    """What its data stages took, all of them."""

    @property
    def at_the_edge(self) -> bool:
        """Whether the best rate is the lowest or the highest tried, so that another may be better."""
        return len(self.tried) > 1 and self.lr in (min(self.tried), max(self.tried))


@dataclass(frozen=True)
class ComparisonRow:
    """One arm at one budget, all seeds."""

    kind: str  # "steps" or "seconds": what is equal
    reference_steps: int
    arm: str
    steps: int = 0
    bits_per_byte: float | None = None  # mean over the seeds
    by_seed: Sequence[float] = ()
    difference: tuple[float, float, float] | None = None  # less the reference's: mean, low, high
    seconds: float | None = None
    flops: float | None = None
    error: str = ""


@dataclass(frozen=True)
class ComparisonReport:
    name: str
    reference: str
    arms: Sequence[ComparisonArm]
    rows: Sequence[ComparisonRow]
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Lines of metrics.jsonl of the first seed's longest run, by arm."""

    def as_dict(self) -> dict[str, Any]:
        """What results.json holds: all but the curves."""
        arms = [
            {**asdict(arm), "tried": {f"{lr:g}": bits for lr, bits in arm.tried.items()}} for arm in self.arms
        ]
        return {
            "name": self.name,
            "reference": self.reference,
            "arms": arms,
            "rows": [asdict(row) for row in self.rows],
        }


@dataclass(frozen=True)
class ActiveRound:
    """One round of an arm; what varies by seed is its mean."""

    windows: int  # that it was trained on
    steps: int
    scored: int  # windows of the pool that was scored before it
    training_flops: float
    selecting_flops: float
    seconds: float  # of all its stages
    validation_loss: float  # at its end, nats per token


@dataclass(frozen=True)
class ActiveArm:
    """The loop or a control, all seeds."""

    name: str
    steps: int
    bits_per_byte: float  # mean over the seeds
    by_seed: Sequence[float]
    unique_tokens: float
    by_kind: Mapping[str, Mapping[str, Any]]
    """The ledger without the final evaluation, mean over the seeds: {kind: {flops, tokens, seconds}}."""
    rounds: Sequence[ActiveRound]
    difference: tuple[float, float, float] | None = None  # less the reference's: mean, low, high

    @property
    def windows(self) -> int:
        return self.rounds[-1].windows

    @property
    def flops(self) -> float:
        return sum(each.training_flops + each.selecting_flops for each in self.rounds)

    @property
    def selecting_flops(self) -> float:
        return sum(each.selecting_flops for each in self.rounds)

    @property
    def seconds(self) -> float:
        return sum(each.seconds for each in self.rounds)


@dataclass(frozen=True)
class ActiveReport:
    """Active learning and its controls at equal total cost, the loop first."""

    name: str
    kind: str  # of the uncertainty
    reference: str  # name of an arm
    seeds: Sequence[int]
    arms: Sequence[ActiveArm]
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Lines of metrics.jsonl of the first seed, by arm; `flops` counts training and scoring."""
    pools: Sequence[tuple[np.ndarray, np.ndarray]] = ()
    """The uncertainty of the first seed's scored and of its added windows, by round."""

    def as_dict(self) -> dict[str, Any]:
        """What results.json holds: all but the curves and the pools."""
        values = {name: getattr(self, name) for name in ("name", "kind", "reference")}
        totals = ("windows", "flops", "selecting_flops", "seconds")
        arms = [{**asdict(arm), **{name: getattr(arm, name) for name in totals}} for arm in self.arms]
        return {**values, "seeds": list(self.seeds), "arms": arms}


@dataclass(frozen=True)
class TransferPhase:
    """One phase of a transfer: a run of its own."""

    name: str
    run: str
    """Its folder, relative to the page."""
    steps: int
    tokens_seen: int
    flops: float
    seconds: float
    before: float | None  # held-out bits per byte of the model that it started from
    after: float
    pool: Mapping[str, Any] | None = None
    """Bits per byte on the held-out text of the phase before: `before` and `after` this one."""
    leaked: Mapping[str, int] | None = None
    """Training documents that went because another corpus holds them out, by reason; None: not looked for."""


@dataclass(frozen=True)
class TransferReport:
    """A transfer: its phases in order, the one on the target last."""

    name: str
    phases: Sequence[TransferPhase]

    @property
    def target(self) -> TransferPhase:
        return self.phases[-1]

    @property
    def shared_flops(self) -> float:
        """What the phases before the target cost: one target pays it in full, several share it."""
        return sum(phase.flops for phase in self.phases[:-1])

    @property
    def flops(self) -> float:
        """All phases."""
        return sum(phase.flops for phase in self.phases)

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    def as_dict(self) -> dict[str, Any]:
        """What transfer.json holds."""
        totals = {"target_flops": self.target.flops, "shared_flops": self.shared_flops}
        return {"name": self.name, "phases": [asdict(phase) for phase in self.phases], **totals}
