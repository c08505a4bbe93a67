"""The recipe's `training` keys that leave work out: shorter windows at first, fewer tokens, fewer layers."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from bkray.config.section import Section, Share


class Length(Section):
    """Windows cut into shorter pieces at first, as many more of them (arXiv 2108.06084)."""

    start: Annotated[int, Field(ge=1)]
    """Target tokens of a piece at the first step; the length doubles until it is the window."""
    until: Share = 0.5
    """Share of the steps after which the windows are whole; each length before has the same part of it."""

    def lengths(self, window: int) -> list[int]:
        """`start`, twice that, … up to `window`; raises ValueError where doubling misses it."""
        possible = [window]
        while possible[-1] % 2 == 0:
            possible.append(possible[-1] // 2)
        if self.start not in possible[1:]:
            choice = ", ".join(map(str, possible[1:])) or f"{window} is odd, so remove training.length"
            raise ValueError(
                f"training.length.start {self.start} must be window {window} halved once or more: {choice}"
            )
        return possible[possible.index(self.start) :: -1]


class Unfreeze(Section):
    """Gradual unfreezing, from the top block down (arXiv 1801.06146)."""

    at: Annotated[tuple[Share, ...], Field(min_length=1)]
    """Shares of the steps after which one block more is trained, the embedding with the last of them; as many
    blocks are frozen at first."""

    def begins(self, steps: int) -> list[int]:
        """The first steps of the later phases of `steps`; raises ValueError where a phase has no step."""
        begins = [round(share * steps) for share in self.at]
        if any(here >= after for here, after in pairwise([0, *begins, steps])):
            raise ValueError(
                f"training.unfreeze.at {list(self.at)} are the steps {begins} of {steps}: let them rise so "
                "that every phase, the first and the last too, has a step"
            )
        return begins

    def frozen(self, step: int, steps: int) -> int:
        """Frozen blocks at `step`, counted from 0."""
        return sum(step < begin for begin in self.begins(steps))


class ActivationCache(Section):
    """What the frozen layers give for a window, kept for the next epoch; each worker keeps its own."""

    max_bytes: Annotated[int, Field(ge=1)] = 2**30
    """Of a worker; what does not fit is computed again."""
    where: Literal["memory", "disk"] = "memory"
    """disk: a file in the temporary folder (TMPDIR) that is gone with the worker."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 halves the bytes and rounds what the trained layers read."""

    def bytes_of(self, tokens: int, width: int) -> int:
        """What so many tokens take in a stream of that width."""
        return tokens * width * (4 if self.dtype == "float32" else 2)


class Replay(Section):
    """A share of every batch is drawn from what the start model learnt, so that it forgets less of it."""

    run: str
    """Folder of the finished run whose training windows are the pool."""
    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Of all windows drawn, in every batch to within one."""


class TokenSelection(Section):
    """The share of a batch's tokens that give a gradient: those with the most to learn (arXiv 2404.07965)."""

    kind: Literal["reducible", "random"] = "reducible"
    """reducible: the largest loss above the proxy's; random: the control."""
    keep: Share = 0.6

    @property
    def needs_proxy(self) -> bool:
        return self.kind == "reducible"
