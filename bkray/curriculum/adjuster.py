"""DifficultyAdjuster: when the validation loss stops falling, the pacing moves ahead."""

from __future__ import annotations

import math
from typing import Any


class DifficultyAdjuster:
    """Turns validation losses into an advance that is added to the progress of the pacing.

    After `patience` losses in a row without an improvement of at least `min_delta` (nats a token) the advance
    grows by `acceleration`. It never shrinks, so data once available stays available, and never passes 1.
    """

    def __init__(self, patience: int = 2, acceleration: float = 0.1, min_delta: float = 0.005) -> None:
        if patience < 1 or acceleration <= 0 or min_delta < 0:
            raise ValueError(
                f"patience {patience} must be at least 1, acceleration {acceleration} above 0 "
                f"and min_delta {min_delta} not negative"
            )
        self.patience, self.acceleration, self.min_delta = patience, acceleration, min_delta
        self.best = math.inf
        self.stale = 0
        self.advance = 0.0

    def update(self, validation_loss: float) -> float:
        """Take one validation loss and return the advance in [0, 1]."""
        if not math.isfinite(validation_loss):
            raise ValueError(f"validation loss {validation_loss} is not finite")
        if validation_loss < self.best - self.min_delta:
            self.best, self.stale = validation_loss, 0
        else:
            self.stale += 1
        if self.stale >= self.patience:
            self.advance, self.stale = min(1.0, self.advance + self.acceleration), 0
        return self.advance

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "stale": self.stale, "advance": self.advance}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.stale, self.advance = state["best"], state["stale"], state["advance"]
