"""What `bench_transfer.py` prints: runs with all that they took, and what each level cost.

runs of a target ─► Runs: tokens, FLOPs, seconds side by side
levels ─► Level: the saving, with what is shared by all targets paid once
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from bkray.evaluation import Saving


@dataclass(frozen=True)
class Spent:
    """What a run took."""

    flops: float = 0.0
    tokens: int = 0
    """Seen in training."""
    unique_tokens: int = 0
    seconds: float = 0.0
    """Wall-clock, of training and starting it, and of teachers' passes."""
    preparation: float = 0.0
    """Wall-clock seconds of the stages that prepare its data, whether this run or one before made them."""

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))


NOTHING = Spent()


@dataclass(frozen=True)
class Runs:
    """The runs of one kind: an entry a seed, each with its bits per byte on the test split."""

    target: str
    what: str
    spent: Sequence[Spent]
    bits: Sequence[float] = ()
    """None of pretraining, which is looked at on other text."""

    @property
    def points(self) -> list[tuple[float, float]]:
        """(FLOPs, bits per byte) of every seed."""
        return [(each.flops, bits) for each, bits in zip(self.spent, self.bits, strict=True)]

    def row(self) -> str:
        """Of a Markdown table, means over the seeds."""
        fields = zip(*map(astuple, self.spent), strict=True)
        spent_on, seen, unique, seconds, preparation = (statistics.fmean(each) for each in fields)
        line = f"| {self.target} | {self.what} | {seen:,.0f} | {unique:,.0f} | {flops(spent_on)}"
        bits = f"{statistics.fmean(self.bits):.4f}" if self.bits else ""
        return f"{line} | {seconds:,.0f} | {preparation:,.0f} | {bits} |"


@dataclass(frozen=True)
class Level:
    """A line of the table: what both sides paid for the quality of so many epochs from scratch."""

    target: str
    epochs: float
    bits: float | None
    saving: Saving
    trials: tuple[float, float]
    """FLOPs, of the comparator and of the other side."""
    shared: float
    """FLOPs of pretraining, or of the teacher; mean over the seeds."""

    def row(self) -> str:
        """Of a Markdown table; of the saving the geometric mean over the seeds and its 95 % interval."""
        saving, bits = self.saving, "" if self.bits is None else f"{self.bits:.4f}"
        line = f"| {self.target} | {self.epochs:g} | {bits} | {flops(saving.comparator_cost)} |"
        if saving.cost is None:
            return f"{line} not reached by {saving.missed} of {len(saving.own)} seeds | | | | |"
        most, least = ("at most ", "≥ ") if saving.at_most else ("", "")
        ratio = shown_ratio(saving)
        with_trials = saving.with_more(self.trials[1], self.trials[0])
        in_full, targets = saving.with_more(self.shared), saving.break_even(self.shared)
        line += f" {most}{flops(saving.cost)} | {ratio} | {least}{with_trials:.2f} | {least}{in_full:.2f} |"
        return f"{line} {most if targets else ''}{targets or 'none'} |"


def shown_ratio(saving: Saving) -> str:
    """The saving of a level that was reached, with its interval where there are seeds enough for one."""
    text = f"≥ {saving.ratio:.2f}" if saving.at_most else f"{saving.ratio:.2f}"
    if not saving.interval:
        return text
    _, low, high = saving.interval.ratio
    return text + (f" (≥ {low:.2f})" if saving.at_most else f" ({low:.2f} to {high:.2f})")


def flops(number: float) -> str:
    """Such as 3.38e12."""
    mantissa, exponent = f"{number:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def together(same: Sequence[Level]) -> Level:
    """All targets as one, for which what is shared is paid once."""
    trials = sum(level.trials[0] for level in same), sum(level.trials[1] for level in same)
    saving = Saving.together([level.saving for level in same])
    return Level(f"all {len(same)}", same[0].epochs, None, saving, trials, same[0].shared)


def table_of_levels(levels: Sequence[Sequence[Level]], students: bool = False) -> str:
    """Markdown, of the levels of each target; with a line for all of them where they share a pretraining."""
    own, before, many = (
        ("distilled", "the teacher", "students") if students else ("tuned", "pretraining", "targets")
    )
    lines = [
        f"| target | epochs | bits per byte | FLOPs from scratch | {own} | saving | with the trials of both "
        f"| with {before} in full | {many} to break even |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for same in zip(*levels, strict=True):
        lines += [level.row() for level in same]
        if len(same) > 1 and not students:
            lines.append(together(same).row())
    return "\n".join(lines)


def table_of_runs(taken: Sequence[Sequence[Runs]]) -> str:
    """Markdown, of the runs of each target."""
    head = "| target | runs | tokens | different ones | FLOPs | s training | s preparing | bits per byte |"
    lines = [each.row() for of_target in taken for each in of_target]
    return "\n".join([head, "|---|---|---|---|---|---|---|---|", *lines])
