"""Where loss, gradient or a parameter stops being finite: the step is refused, and the recipe says what then.

    a loss is not finite ─► `spread` ─► all gradients are NaN ─► DDP's mean ─► the norm is NaN on every rank
    the norm is not finite ─► batch saved ─► stop, or skip the step, or fall back: checkpoint, lower rate
    a parameter is not finite after the update ─────────────────► stop, or fall back

So all ranks decide the same, and a run that does not diverge pays no collective for it.
"""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from bkray.config import UserError
from bkray.config.divergence import FallBack, OnDivergence, SkipStep
from bkray.training.divergence.finite import first_non_finite
from bkray.training.state.checkpoint import Checkpointer, load_on_all_ranks

if TYPE_CHECKING:
    from bkray.training.batches import Batch
    from bkray.training.loop import TrainingRun

logger = logging.getLogger(__name__)


class Diverged(UserError):
    """Loss, gradient or a parameter is not finite."""


def spread(loss: Tensor) -> Tensor:
    """`loss` itself where it is finite; otherwise NaN, and so is every gradient, also where loss is infinite.

    An infinite cross-entropy alone has a finite gradient, and the other ranks would train on.
    """
    return loss * (1.0 + (loss - loss).detach())


@contextmanager
def scaled_rates(optimizer: torch.optim.Optimizer, factor: float) -> Iterator[None]:
    """In the block every rate of `optimizer` is multiplied by `factor`; schedules see theirs after it."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor
    try:
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


class Recovery:
    """What a run did about its divergences: at most as often as the recipe says, and noted."""

    def __init__(self, settings: OnDivergence | None) -> None:
        self.settings = settings
        self.events: list[dict[str, Any]] = []
        """step, what was not finite, what was done about it: of every divergence so far."""

    @property
    def rate_factor(self) -> float:
        """What the schedule's rate is multiplied by."""
        return self.settings.lr_factor ** len(self.events) if isinstance(self.settings, FallBack) else 1.0

    def rate(self, optimizer: torch.optim.Optimizer) -> float:
        """The highest rate of the next step; a plateau changes it after its schedule's own step."""
        return max(group["lr"] for group in optimizer.param_groups) * self.rate_factor

    def skips(self, step: int, error: Diverged) -> bool:
        """Whether the recipe leaves this step out; notes that it does."""
        if not isinstance(self.settings, SkipStep) or self._is_enough(error):
            return False
        self._note(step, error, "the step was left out")
        return True

    def leave_out(self, schedule: LRScheduler) -> None:
        """Move `schedule` past a step without an update, of which torch would warn where it is the first."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of .lr_scheduler.step", UserWarning)
            schedule.step()

    def falls_back(self, error: Diverged) -> bool:
        """Whether the recipe goes back to the last checkpoint."""
        return isinstance(self.settings, FallBack) and not self._is_enough(error)

    def note_fall_back(self, step: int, to: int, error: Diverged) -> None:
        """`step` diverged and the run is at step `to` again; every earlier event stays."""
        assert isinstance(self.settings, FallBack)
        factor = self.settings.lr_factor ** (len(self.events) + 1)
        self._note(step, error, f"back to step {to}, from there the rate is {factor:g} of the schedule's")

    def state_dict(self) -> dict[str, Any]:
        return {"events": [dict(event) for event in self.events]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.events = [dict(event) for event in state["events"]]

    def _note(self, step: int, error: Diverged, done: str) -> None:
        self.events.append({"step": step, "what": str(error), "done": done})
        logger.warning("%s: %s", error, done)

    def _is_enough(self, error: Diverged) -> bool:
        if self.settings is None or len(self.events) < self.settings.most:
            return False
        most = self.settings.most
        error.message += f"; as many came before as training.on_divergence.most allows, {most}"
        return True


def refusal(run: TrainingRun, batch: Batch, rng: Tensor, norm: float) -> Diverged:
    """The error of a step whose gradient is not finite; what led to it is saved by the ranks concerned.

    These are the ranks whose loss is not finite, or all of them where every loss is. A collective call.
    `rng` is the random state before the forward pass.
    """
    loss = float(run.window_losses.mean())
    named = run.model.named_parameters()
    bad = first_non_finite((name, p.grad) for name, p in named if p.grad is not None)
    if not math.isfinite(loss):
        bad = "the loss"
    bad = bad or "the norm, of a gradient that is finite itself"
    message = (
        f"training diverged at step {run.step}: loss {loss}, gradient norm {norm}, first at {bad}; "
        f"{run.recipe.training.too_high}"
    )
    blamed = run.world.gather(torch.tensor([not math.isfinite(loss)], dtype=torch.uint8))
    if run.evidence and (not math.isfinite(loss) or not any(map(bool, blamed))):
        rank, count = run.world.rank, len(batch.tokens)
        contents = {
            "step": run.step,
            "rank": rank,
            "world_size": run.world.size,
            "ids": torch.from_numpy(batch.ids[rank * count :][:count]),
            "tokens": batch.tokens.cpu(),
            "window_losses": run.window_losses.cpu(),
            "gradient_norm": norm,
            "first_not_finite": bad,
            "rng": rng,
            "lr": run.recovery.rate(run.optimizer),
        }
        message += f"; {_saved(run.evidence / f'diverged-step-{run.step}-rank-{rank}.pt', contents)}"
    return Diverged(message)


def fall_back(run: TrainingRun, error: Diverged, checkpointer: Checkpointer | None) -> None:
    """Be again where the last good checkpoint was, for a lower rate; raise `error` unless the recipe says so.

    What was done since then is charged as lost.
    """
    if not (checkpointer and run.recovery.falls_back(error)):
        raise error
    state = load_on_all_ranks(checkpointer, run.world)
    assert state is not None, "there is one of step 0"
    begun = run.step_started is not None
    windows = run.recipe.batch_windows if begun else 0
    reached = {
        "total_flops": run.ledger.total_flops + run.charges.flops(windows),
        "tokens": run.tokens + windows * run.recipe.window,
        "seconds": run.seconds + (time.perf_counter() - run.step_started if run.step_started else 0.0),
    }
    events, at, run.step_started = run.recovery.events, run.step, None
    run.load_state_dict(state)
    run.optimizer.zero_grad(set_to_none=True)
    run.recovery.events = events
    run.recovery.note_fall_back(at, run.step, error)
    run.charges.lost(reached, run.tokens, run.seconds)
    if run.reporter:
        run.reporter.truncate_after(run.step)


def _saved(path: Path, contents: dict[str, Any]) -> str:
    """Write `contents` (tensors and plain values) whole or not at all; returns where it is, or why it is not.

    `torch.load(path)` reads it without running foreign code.
    """
    partial = path.with_name(f".partial-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            torch.save(contents, file)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        return f"its batch could not be saved ({error})"
    return f"its batch is in {path}"
