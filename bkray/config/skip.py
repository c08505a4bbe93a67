"""The recipe's `training.skip`: a step draws more windows than it trains on and skips some of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bkray.config.section import Section, Share

OpenShare = Annotated[float, Field(gt=0.0, lt=1.0)]


class Skip(Section):
    """Batches stay full: of B / (1 - share) candidates B are kept, so that a pass takes fewer steps."""

    share: OpenShare = 0.2
    """Share of the candidates that is skipped."""
    by: Literal["difficulty", "random"] = "difficulty"
    """Easy windows, by predicted loss, are skipped more often; or a random control."""
    floor: OpenShare = 0.4
    """Least probability of being kept; no weight is above (1 - share) / floor."""
    unbiased: bool = True
    """Weigh losses by 1 / probability, so that the expected gradient is that of all candidates."""
    until: Share = 0.9
    """Share of the steps after which nothing is skipped."""

    def candidates(self, batch: int) -> int:
        """Windows that a step with a batch of `batch` draws."""
        return round(batch / (1.0 - self.share))

    @model_validator(mode="after")
    def _effective(self) -> Skip:
        if self.by == "random":
            if inert := [key for key in ("floor", "unbiased") if self.changed(key)]:
                raise ValueError(
                    f"{inert[0]} has no effect with by random, which keeps all windows alike: remove it"
                )
        elif self.floor >= 1.0 - self.share:
            raise ValueError(
                f"floor {self.floor} must be below 1 - share = {1.0 - self.share:g}, the mean probability of "
                "being kept: lower floor or share"
            )
        return self
