"""The windows of a step: drawn by the sampler, read a step ahead, some of them skipped.

sampler.ids(step) ─► read ahead ─► (skipper: candidates ─► those that are kept) ─► this rank's part
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bkray.curriculum import CurriculumSampler
from bkray.training.ahead import Ahead
from bkray.training.parallel.world import World
from bkray.training.techniques.skipping import Choice, ExampleSkipper


class Windows(Protocol):
    """W windows that are read by their positions: `[ids]` gives a row each, token ids (len(ids), N + 1)."""

    def __len__(self) -> int: ...

    def __getitem__(self, ids: np.ndarray, /) -> np.ndarray: ...


@dataclass(frozen=True)
class WindowData:
    """Token ids of the training windows (W, N + 1) and of the validation windows (W', N + 1)."""

    train: Windows
    validation: np.ndarray
    reference: Windows | None = None
    """(W, N): a reference model's loss of every training target, nats, where tokens are selected by it."""
    soft_targets: tuple[Windows, Windows] | None = None
    """k token ids of the teachers and their log-probabilities, nats, of every target: (W, N x k) each."""


@dataclass(frozen=True)
class Batch:
    """The windows of one global batch."""

    ids: np.ndarray
    """(B,) int64: their positions in the training windows, the same on every rank."""
    tokens: Tensor
    """(B / world size, N + 1) int64: the windows that are this rank's, in the order of `ids`."""
    reference: Tensor | None = None
    """(B / world size, N) float32: the reference losses of their targets, where there are any."""
    soft_targets: tuple[Tensor, Tensor] | None = None
    """(B / world size, N, k) int64 and float32: the teachers' tokens and log-probabilities, if asked for."""
    weights: np.ndarray | None = None
    """(B / world size,) of their losses, where a step skips some windows."""
    choice: Choice | None = None
    """How the windows were chosen among candidates then."""

    def parts(self, count: int) -> list[Batch]:
        """This rank's windows in `count` micro-batches of nearly one size."""
        none = [None] * count
        tokens = self.tokens.tensor_split(count)
        references = none if self.reference is None else self.reference.tensor_split(count)
        soft: Iterable[Any] = none
        if self.soft_targets is not None:
            soft = zip(*(each.tensor_split(count) for each in self.soft_targets), strict=True)
        weights = none if self.weights is None else np.array_split(self.weights, count)
        return [Batch(self.ids, *part) for part in zip(tokens, references, soft, weights, strict=True)]

    def rows(self, rows: list[int]) -> Batch:
        """Some of the windows, in this order; `ids` stay."""
        soft_targets = self.soft_targets and (self.soft_targets[0][rows], self.soft_targets[1][rows])
        reference = None if self.reference is None else self.reference[rows]
        return replace(self, tokens=self.tokens[rows], reference=reference, soft_targets=soft_targets)

    @property
    def inputs(self) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor] | None]:
        """What `Objective` takes."""
        return self.tokens, self.reference, self.soft_targets


class Batches:
    """The batches of `steps` steps on this rank, asked for in order; the next is read meanwhile.

    Whoever changes the sampler calls `drop` first.
    """

    def __init__(
        self,
        data: WindowData,
        sampler: CurriculumSampler,
        skipper: ExampleSkipper | None,
        device: torch.device,
        steps: int,
    ) -> None:
        self.data, self.sampler, self.skipper, self.device = data, sampler, skipper, device
        self.world = World.current()
        self._ahead = Ahead(self._read, steps)

    def take(self, step: int) -> Batch:
        drawn = self._ahead.take(step)
        if not self._skips(step):
            return drawn
        assert self.skipper
        choice = self.skipper.choose(step, drawn.ids, drawn.tokens.cpu().numpy())
        place = {number: row for row, number in enumerate(drawn.ids.tolist())}
        kept = drawn.rows([place[number] for number in self.world.part(choice.ids).tolist()])
        weights = self.world.part(choice.weights)
        return replace(kept, ids=choice.ids, weights=weights, choice=choice)

    def drop(self) -> None:
        """Forget what was read ahead."""
        self._ahead.drop()

    def of(self, ids: np.ndarray, mine: np.ndarray) -> Batch:
        """The batch of the windows `ids`, those of this rank being `mine`."""
        tokens = torch.as_tensor(self.data.train[mine], dtype=torch.int64, device=self.device)
        reference, soft_targets = None, None
        if self.data.reference is not None:
            reference = torch.as_tensor(self.data.reference[mine]).float().to(self.device)
        if self.data.soft_targets is not None:
            shape = len(mine), tokens.shape[1] - 1, -1
            soft_ids, nats = (column[mine].reshape(shape) for column in self.data.soft_targets)
            soft_targets = (
                torch.as_tensor(soft_ids.astype(np.int64), device=self.device),
                torch.as_tensor(nats.astype(np.float32), device=self.device),
            )
        return Batch(ids, tokens, reference, soft_targets)

    def _read(self, step: int) -> Batch:
        """What is known of `step` before the one before it is done: all candidates where it skips some."""
        ids = self.sampler.ids(step)
        return self.of(ids, ids if self._skips(step) else self.world.part(ids))

    def _skips(self, step: int) -> bool:
        return self.skipper is not None and self.skipper.active(step)
