"""DifficultyPredictor: which windows will have a large loss, from what is known before their pass.

last loss, rarity, difficulty ─► features (M, F) ─► ridge regression ─► predicted loss (M,)
                                       losses of the windows trained on ─► one more step of the regression
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

_RIDGE = 1.0
"""Of the regression: as if one squared unit of every feature had been seen without any effect."""
_FORGETTING = 0.99
"""Weight of a step in the equations of the next: what predicts the loss changes as the model learns."""


class DifficultyPredictor:
    """Ridge regression of the differences between losses within a step, forgetting old steps, in float64.

    Differences, because the level of the loss falls and says nothing about a single window. The features of
    a window are all free or nearly so:

    - its loss when it was last trained on, less that of an average window then; 0 where it never was
    - its rarity, the mean surprisal in nats of its targets under the counts of what was trained on so far, as
      one feature for windows trained on before and another one for new windows
    - its difficulty, where there is one

    Args:
        windows: W, how many windows there are.
        difficulty: (W,) one score a window, or None.
    """

    def __init__(self, windows: int, difficulty: np.ndarray | None = None) -> None:
        self.difficulty = difficulty
        self.excess = np.zeros(windows, dtype=np.float32)
        self.seen = np.zeros(windows, dtype=bool)
        self.counts = np.zeros(0, dtype=np.int64)
        size = 3 if difficulty is None else 4
        self.moments, self.products = np.zeros((size, size)), np.zeros(size)

    def features(self, ids_M: np.ndarray, tokens_MN1: np.ndarray) -> np.ndarray:
        """(M, F) float64, less their mean over the M windows."""
        seen, rarity = self.seen[ids_M], self._rarity(tokens_MN1[:, 1:])
        columns = [self.excess[ids_M], rarity * seen, rarity * ~seen]
        if self.difficulty is not None:
            columns.append(self.difficulty[ids_M])
        features_MF = np.stack(columns, axis=1).astype(np.float64)
        return features_MF - features_MF.mean(axis=0)

    def predict(self, features_MF: np.ndarray) -> np.ndarray:
        """Predicted loss less that of the average of the M, nats a token: (M,) float64."""
        ridge = _RIDGE * np.eye(len(self.products))
        return features_MF @ np.linalg.solve(self.moments + ridge, self.products)

    def learn(
        self, ids_B: np.ndarray, tokens_BN1: np.ndarray, features_BF: np.ndarray, losses_B: np.ndarray
    ) -> None:
        """Take the losses (nats a token) of windows whose features were taken before their pass."""
        average = (losses_B - self.predict(features_BF)).mean()
        x_BF, y_B = features_BF - features_BF.mean(axis=0), losses_B - losses_B.mean()
        self.moments = _FORGETTING * self.moments + x_BF.T @ x_BF
        self.products = _FORGETTING * self.products + x_BF.T @ y_B
        self.excess[ids_B], self.seen[ids_B] = losses_B - average, True
        counts = np.bincount(tokens_BN1[:, 1:].ravel(), minlength=len(self.counts))
        counts[: len(self.counts)] += self.counts
        self.counts = counts

    def flops(self, candidates: int, kept: int, window: int) -> float:
        """What a step of predicting for `candidates` windows and learning from `kept` costs, FLOPs."""
        size = len(self.products)
        solve = 2 * size**3 / 3
        return candidates * (window + 2 * size) + kept * size * (2 * size + 4) + 2 * solve

    def _rarity(self, targets_MN: np.ndarray) -> np.ndarray:
        """Mean surprisal, nats, under the counts so far, add-one smoothed; less that of the M: (M,)."""
        counts = np.ones(max(len(self.counts), int(targets_MN.max()) + 1))
        counts[: len(self.counts)] += self.counts
        rarity_M = -np.log(counts)[targets_MN].mean(axis=1)
        return rarity_M - rarity_M.mean()

    def state_dict(self) -> dict[str, Any]:
        arrays = ("excess", "seen", "counts", "moments", "products")
        return {name: torch.from_numpy(getattr(self, name).copy()) for name in arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, values in state.items():
            setattr(self, name, values.numpy().copy())
