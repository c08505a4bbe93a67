"""ExampleSkipper: a step draws more windows than it trains on, and keeps hard ones more often.

    M candidates ─► predicted loss ─► quantile ─► probability of being kept ─► exactly B kept, weights
                        ▲                                                             │
                        └─────────────────── their losses, of all ranks ◄─────────────┘

A step always trains on a full batch, so a pass over the data takes fewer steps. With a weight of B / (M p) on
the mean loss of every kept window, the expected gradient is that of all candidates (Horvitz and Thompson
1952): the weighted mean over the kept windows is (1/M) Σ loss / p. Every rank computes the same choice.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bkray.config import Recipe
from bkray.config.skip import Skip
from bkray.curriculum import CurriculumSampler
from bkray.evaluation import rank_correlation
from bkray.training.cost.ledger import Ledger
from bkray.training.techniques.predictor import DifficultyPredictor

logger = logging.getLogger(__name__)

_BIASED = (
    "training.skip.unbiased is false: losses are not weighted, so the gradient is biased towards windows of "
    "large predicted loss; this mode is for comparison"
)


def inclusion_probabilities(candidates: int, kept: int, floor: float) -> np.ndarray:
    """Probability of being kept by rank of predicted difficulty, easiest first: (M,), with sum `kept`.

    p = min(1, max(floor, c q)) with the quantile q = (rank + 1/2) / M and the c that gives the sum. Raises
    ValueError where no c does.
    """
    if not 0 < kept <= candidates or not 0 < floor * candidates <= kept:
        raise ValueError(f"floor {floor} and {kept} kept of {candidates} candidates contradict each other")
    quantiles = (np.arange(candidates) + 0.5) / candidates
    low, high = 0.0, 2.0 * candidates  # at c = 2 M every candidate is sure
    for _ in range(100):
        middle = (low + high) / 2
        if np.clip(middle * quantiles, floor, 1.0).sum() < kept:
            low = middle
        else:
            high = middle
    return np.clip(high * quantiles, floor, 1.0)


def systematic_sample(probabilities: np.ndarray, start: float) -> np.ndarray:
    """Positions of a sample that holds position i with probability p_i, for a uniform `start` in [0, 1).

    Its size is exactly Σ p, an integer (Madow 1949): one position at every start + k of the running sum.
    """
    size = round(probabilities.sum())
    edges = np.cumsum(probabilities)
    edges[-1] = size
    return np.searchsorted(edges, start + np.arange(size), side="right")


@dataclass(frozen=True)
class Choice:
    """What a step keeps, in the order in which its candidates were drawn."""

    ids: np.ndarray
    """(B,) int64."""
    weights: np.ndarray
    """(B,) float64, B / (M p): Σ weight · loss / B estimates the mean loss of the candidates without bias."""
    tokens: np.ndarray
    """(B, N + 1)."""
    features: np.ndarray
    """(B, F); F is 0 where windows are skipped at random."""
    predicted: np.ndarray
    """(B,) loss less that of the average candidate, nats a token."""


class ExampleSkipper:
    """Chooses the windows of a step among its candidates, and learns from their losses.

    Args:
        settings: the recipe's `training.skip`.
        batch_size: B, windows of a global batch.
        total_steps: steps of the schedule.
        windows: W, windows of the training set.
        difficulty: (W,) a feature for the predictor, or None.
        seed: with the step, the only source of randomness.
    """

    def __init__(
        self,
        settings: Skip,
        batch_size: int,
        total_steps: int,
        windows: int,
        difficulty: np.ndarray | None = None,
        seed: int = 0,
    ) -> None:
        self.settings, self.batch_size, self.seed = settings, batch_size, seed
        self.active_steps = math.floor(settings.until * total_steps)
        self.predictor = DifficultyPredictor(windows, difficulty) if settings.by == "difficulty" else None
        drawn = settings.candidates(batch_size)
        self.by_rank = inclusion_probabilities(drawn, batch_size, min(settings.floor, batch_size / drawn))
        self._since_log = {"candidate_loss": 0.0, "rank_correlation": 0.0, "steps": 0, "ranked": 0}
        self._seconds = 0.0  # of this step, until it is charged
        if self.predictor and not settings.unbiased:
            logger.warning(_BIASED)

    def active(self, step: int) -> bool:
        """Whether `step` skips windows: not near the end of the schedule."""
        return step < self.active_steps

    def candidates(self, step: int) -> int:
        """Windows that `step` draws: more than a batch where it skips some."""
        return len(self.by_rank) if self.active(step) else self.batch_size

    def examined(self, steps: int) -> int:
        """Candidates of the first `steps` steps."""
        active = min(steps, self.active_steps)
        return active * len(self.by_rank) + (steps - active) * self.batch_size

    def choose(self, step: int, ids_M: np.ndarray, tokens_MN1: np.ndarray) -> Choice:
        """Exactly B of the M candidates; the same for the same step, candidates and losses learnt from."""
        started = time.perf_counter()
        features, predicted = np.zeros((len(ids_M), 0)), np.zeros(len(ids_M))
        if self.predictor:
            features = self.predictor.features(ids_M, tokens_MN1)
            predicted = self.predictor.predict(features)
        probabilities = self.probabilities(predicted)
        rng = self._rng(step)
        # Along the predicted loss, ties at random: every sample is then spread over easy and hard.
        order = np.lexsort((rng.random(len(ids_M)), predicted))
        kept = np.sort(order[systematic_sample(probabilities[order], rng.random())])
        weights = self.batch_size / (len(ids_M) * probabilities[kept])
        choice = Choice(ids_M[kept], weights, tokens_MN1[kept], features[kept], predicted[kept])
        self._seconds = time.perf_counter() - started
        return choice

    def probabilities(self, predicted_M: np.ndarray) -> np.ndarray:
        """(M,) of being kept; candidates of one predicted loss share the mean of their ranks."""
        _, group, counts = np.unique(predicted_M, return_inverse=True, return_counts=True)
        starts = np.cumsum(counts) - counts
        return (np.add.reduceat(self.by_rank, starts) / counts)[group]

    def observe(self, choice: Choice, losses_B: np.ndarray) -> None:
        """Learn from the mean losses (nats a token) that the chosen windows of all ranks had."""
        started, since = time.perf_counter(), self._since_log
        since["steps"] += 1
        since["candidate_loss"] += float((choice.weights * losses_B).mean())
        if self.predictor:
            correlation = rank_correlation(choice.predicted, losses_B)
            if math.isfinite(correlation):
                since["ranked"] += 1
                since["rank_correlation"] += correlation
            self.predictor.learn(choice.ids, choice.tokens, choice.features, losses_B)
        self._seconds += time.perf_counter() - started

    def weighted(self, losses_bN: Tensor, weights_b: np.ndarray) -> Tensor:
        """What is minimised: the weighted mean of a rank's losses, or their plain mean in the biased mode."""
        if not self.settings.unbiased:
            return losses_bN.mean()
        weights = torch.as_tensor(weights_b, dtype=losses_bN.dtype, device=losses_bN.device)
        return (weights * losses_bN.mean(1)).mean()

    def charge(self, ledger: Ledger, window: int, ranks: int) -> float:
        """Charge the step's choosing and learning, which every rank does; returns its seconds."""
        seconds, self._seconds = self._seconds, 0.0
        if self.predictor:
            flops = ranks * self.predictor.flops(len(self.by_rank), self.batch_size, window)
            ledger.charge("predictor", flops=flops, seconds=seconds)
            return seconds
        return 0.0

    def measurements(self, steps: int) -> dict[str, float]:
        """For the log after `steps` steps, since the last call: the mean of the loss estimated for the
        candidates and of Spearman's correlation of predicted and seen losses; candidates of all steps."""
        since, self._since_log = self._since_log, dict.fromkeys(self._since_log, 0)
        counted = {"candidate_loss": since["steps"], "rank_correlation": since["ranked"]}
        means = {name: since[name] / count for name, count in counted.items() if count}
        return {"candidates": self.examined(steps), **means}

    def _rng(self, step: int) -> np.random.Generator:
        # The sampler's purposes are 0 and 1.
        key = np.array([(self.seed << 8) | 2, step], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key))

    def state_dict(self) -> dict[str, Any]:
        predictor = self.predictor.state_dict() if self.predictor else {}
        return {"predictor": predictor, "since_log": dict(self._since_log)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.predictor:
            self.predictor.load_state_dict(state["predictor"])
        self._since_log = dict(state["since_log"])


def build_skipper(recipe: Recipe, sampler: CurriculumSampler) -> ExampleSkipper | None:
    """The recipe's skipper for the windows of `sampler`; their order of difficulty, if any, is a feature."""
    if not recipe.training.skip:
        return None
    windows = len(sampler.order)
    place = np.argsort(sampler.order) / windows if recipe.difficulty else None
    return ExampleSkipper(
        recipe.training.skip, recipe.batch_windows, recipe.steps, windows, place, recipe.seed
    )
