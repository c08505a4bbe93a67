"""The training loop. It imports no ray: the world is torch.distributed's, results go to the reporter.

sampler.ids(step) ─► this rank's windows ─► forward, backward (DDP averages) ─► clip ─► optimizer, schedule
                               │
         every so many steps: reporter (a log line), validation ─► adjuster ─► sampler, checkpointer
"""

from __future__ import annotations

import math
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bkray.config import Recipe
from bkray.config.divergence import FallBack
from bkray.curriculum import CurriculumSampler, DifficultyAdjuster
from bkray.training.batches import Batch, Batches, WindowData
from bkray.training.cost.charges import Charges
from bkray.training.cost.flops import forward_cost
from bkray.training.cost.ledger import Ledger
from bkray.training.cost.profiling import Tracer
from bkray.training.cost.step_cost import StepCost
from bkray.training.divergence.finite import first_non_finite
from bkray.training.divergence.recovery import Diverged, Recovery, fall_back, refusal, scaled_rates, spread
from bkray.training.hardware import products
from bkray.training.interfaces import Reporter, Stateful
from bkray.training.metrics import StepMetrics
from bkray.training.objective import Objective
from bkray.training.optimization.schedules import LossTrendLR, PlateauLR, build_schedule
from bkray.training.parallel.strategy import Parallel
from bkray.training.parallel.world import World
from bkray.training.state.checkpoint import Checkpointer, load_on_all_ranks
from bkray.training.state.rng import rng_state, set_rng_state
from bkray.training.techniques.averaging import averaged
from bkray.training.techniques.frozen import freeze, frozen_layers
from bkray.training.techniques.gradient_cache import GradientCache
from bkray.training.techniques.skipping import build_skipper
from bkray.training.validation import validated


@dataclass(frozen=True)
class TrainResult:
    steps: int
    loss: float
    """Mean training loss of the last logged stretch, nats a token."""
    validation_loss: float | None
    tokens: int
    """Target tokens seen by all ranks together."""
    unique_tokens: int
    """Target tokens of the distinct windows among them."""
    divergences: tuple[dict[str, Any], ...] = ()
    """What `training.on_divergence` dealt with: step, what was not finite, what was done."""


def train(
    model: nn.Module,
    data: WindowData,
    sampler: CurriculumSampler,
    recipe: Recipe,
    *,
    reporter: Reporter | None = None,
    ledger: Ledger | None = None,
    checkpointer: Checkpointer | None = None,
    adjuster: DifficultyAdjuster | None = None,
    traces: Path | None = None,
    until: int | None = None,
) -> TrainResult:
    """Train `model` in place for `recipe.steps` steps, going on from the newest checkpoint if there is one.

    With `until` it pauses after that step, with a checkpoint, in the middle of the schedule; another call
    goes on. At the end it holds the average of the weights where `training.average` asks for one.

    Every rank of an initialised process group calls this with the same arguments; only rank 0's reporter is
    used. Raises UserError where loss, gradient or a parameter is not finite, unless
    `training.on_divergence` says what to do; ValueError where that needs checkpoints and there are none, or
    `training.profile` a folder for its traces.

    With `training.parallel` fsdp2 `model` has no parameters while it is trained, nor after an error.
    """
    falls_back = isinstance(recipe.training.on_divergence, FallBack)
    if falls_back and checkpointer is None:
        raise ValueError("training.on_divergence fall_back needs a checkpointer to fall back to")
    if until is not None and not 0 < until <= recipe.steps:
        raise ValueError(f"until {until} must lie between 1 and the {recipe.steps} steps of the recipe")
    if recipe.training.profile and traces is None:
        raise ValueError("training.profile needs a folder for its traces")
    run = TrainingRun(model, data, sampler, recipe, reporter, ledger or Ledger(), adjuster)
    run.evidence = checkpointer.directory if checkpointer else None
    if checkpointer and (state := load_on_all_ranks(checkpointer, run.world)):
        run.load_state_dict(state)
    elif checkpointer and falls_back:
        run.save(checkpointer, None)
    if run.reporter and (dropped := run.reporter.truncate_after(run.step)):
        run.charges.lost(dropped, run.tokens, run.seconds)
    run.charge_settling()
    run.check_parameters("before", "mend how the model starts")
    try:
        tracer = Tracer(recipe.training.profile, traces, run.world.rank)
        _train_until(recipe.steps if until is None else until, run, checkpointer, tracer)
    finally:
        if checkpointer:
            checkpointer.wait()
    return run.result()


def _train_until(steps: int, run: TrainingRun, checkpointer: Checkpointer | None, tracer: Tracer) -> None:
    settings = run.recipe.training
    run.clock.restart()
    while run.step < steps:
        try:
            with tracer.step(run.step):
                run.train_step()
            last = run.step == steps
            validated = len(run.data.validation) > 0 and (last or run.step % settings.eval_every == 0)
            if validated:
                with run.clock.phase("validation"):
                    run.validate()
        except Diverged as error:
            fall_back(run, error, checkpointer)
            continue
        if last or run.step % settings.log_every == 0:
            run.log()
        if checkpointer and (last or run.step % settings.checkpoint_every == 0):
            run.save(checkpointer, run.validation_loss if validated else None)
    run.parallel.give_back()
    if run.average:
        run.model.load_state_dict(run.average.module.state_dict())


class TrainingRun:
    """The state of one training run between two steps."""

    def __init__(
        self,
        model: nn.Module,
        data: WindowData,
        sampler: CurriculumSampler,
        recipe: Recipe,
        reporter: Reporter | None,
        ledger: Ledger,
        adjuster: DifficultyAdjuster | None,
    ) -> None:
        self.world = World.current()
        self.data, self.sampler, self.recipe = data, sampler, recipe
        self.ledger, self.adjuster = ledger, adjuster
        self.reporter = reporter if self.world.rank == 0 else None
        self.device = next(model.parameters()).device
        self.skipper = build_skipper(recipe, sampler)
        if self.skipper:
            self.sampler = sampler.drawing(self.skipper.candidates)
        self.batches = Batches(data, self.sampler, self.skipper, self.device, recipe.steps)
        forward = forward_cost(model, recipe.window)
        self.frozen = frozen_layers(recipe, 0)
        if self.frozen:
            freeze(model, self.frozen)
        step_cost = StepCost(model, recipe.window, recipe.training, self.frozen)
        self.parallel = Parallel(model, recipe.training, recipe.steps)
        self.model = self.parallel.model
        average = recipe.training.average
        self.average = averaged(self.model, average) if average else None
        self.objective = Objective(self.model, recipe)
        self.parallel_objective = self.parallel.wrap(self.objective)
        self.optimizer = self.parallel.optimizer()
        self.schedule = build_schedule(self.optimizer, recipe.training, recipe.steps)
        self.settled = self._settle()
        self.recovery = Recovery(recipe.training.on_divergence)
        self.evidence: Path | None = None
        """Where the batch of a step that diverged is saved."""
        self.window_losses = torch.empty(0)
        """(B / world size,) mean losses of this rank's windows in the last pass, nats a token."""
        settings = recipe.training.gradient_cache
        self.cache = (
            GradientCache(self.model, settings, seed=recipe.seed, world=self.world) if settings else None
        )
        torch.manual_seed(recipe.seed * 1009 + self.world.rank)
        self.step = 0
        self.seconds = 0.0
        self.step_started: float | None = None  # of a step that is not accounted for yet
        self.metrics = StepMetrics(self.device, recipe.training.precision, self.world)
        self.clock = self.metrics.clock
        self.charges = Charges(ledger, recipe.window, self.objective, self.metrics, forward)
        self.charges.trains(step_cost, self.parallel.optimizer_flops(self.optimizer))
        self.seen = np.zeros(len(data.train), dtype=bool)
        self.validation_loss: float | None = None

    def train_step(self) -> None:
        """One global batch: forward, backward, clip, update; charges the ledger.

        Raises Diverged where loss or gradient is not finite, with the weights as they were, unless the recipe
        skips such steps; and where the update leaves a parameter that is not.
        """
        self.objective.begin(self.step)
        self.unfreeze()
        self.step_started = started = time.perf_counter()
        batch, rng = self.draw(), rng_state(self.device)
        loss = self.gradient(batch)
        with self.clock.device_phase("optimizer"):
            norm = self.parallel.clip(self.recipe.training.clip)
            learnt = math.isfinite(norm)
            if learnt:
                self.update()
                self.learn(batch, loss)
        if not learnt:
            self.refuse(refusal(self, batch, rng, norm))
        self.step += 1
        self.step_started = None
        self.account(batch, loss, norm, time.perf_counter() - started)

    def unfreeze(self) -> None:
        """Where the layers of this step are others than those trained so far, go on with these."""
        frozen = frozen_layers(self.recipe, self.step)
        if frozen == self.frozen:
            return
        self.frozen = frozen
        freeze(self.model, frozen)
        self.objective.freeze(frozen)
        step_cost = StepCost(self.model, self.recipe.window, self.recipe.training, frozen)
        self.charges.trains(step_cost, self.parallel.optimizer_flops(self.optimizer))
        self.parallel_objective = self.parallel.wrap(self.objective)
        self.settled = self._settle()
        self.charge_settling()

    def draw(self) -> Batch:
        """The batch of this step; the next one is read meanwhile."""
        with self.clock.phase("reading"):
            return self.batches.take(self.step)

    def gradient(self, batch: Batch) -> Tensor | None:
        """Leave the step's gradient in the parameters; returns this rank's loss, None without a pass."""
        if self.cache is None:
            return self.backward(batch)
        choice = self.cache.look_up(self.step, batch.tokens)
        loss = self.backward(batch) if choice.compute else None
        self.cache.settle(choice, loss)
        return loss

    def backward(self, batch: Batch) -> Tensor:
        """Leave the gradient of the batch in the parameters; returns this rank's mean loss, nats a token.

        The gradient is NaN, on every rank, where the loss of one is not finite.
        """
        self.model.train()
        loss, figures = torch.zeros((), device=self.device), Counter[str]()
        parts, of_windows = batch.parts(self.recipe.training.accumulate), []
        for number, part in enumerate(parts, 1):
            share = len(part.tokens) / len(batch.tokens)
            with (
                products(self.recipe.training, self.device),
                self.parallel.accumulating() if number < len(parts) else nullcontext(),
            ):
                losses_B, measured = self._backward(part, share)
            loss += share * losses_B.mean()
            of_windows.append(losses_B)
            figures.update({name: share * value for name, value in measured.items()})
        self.metrics.values.update(figures)
        self.window_losses = torch.cat(of_windows)
        return loss

    def _backward(self, batch: Batch, share: float) -> tuple[Tensor, dict[str, float]]:
        """Add `share` of the gradient of some windows; returns the loss of each and what was measured."""
        with self.clock.device_phase("forward"):
            losses_BN: Tensor = self.parallel_objective(*batch.inputs)
        loss = losses_BN.mean()
        minimised = loss
        if self.skipper and batch.weights is not None:
            minimised = self.skipper.weighted(losses_BN, batch.weights)
        terms = self.objective.auxiliary_losses(self.step / self.recipe.steps)
        measured = {name: float(term.detach()) for name, term in terms.items()}
        measured.update(self.objective.measurements())
        with self.objective.compiling(), self.clock.device_phase("backward"):
            spread(share * sum(terms.values(), minimised)).backward()
        return losses_BN.detach().mean(1), measured

    def update(self) -> None:
        """Take the optimizer's step along the gradient and forget the gradient."""
        began = time.perf_counter()
        with scaled_rates(self.optimizer, self.recovery.rate_factor):
            self.optimizer.step()
        self.update_seconds = time.perf_counter() - began
        self.check_parameters("after the update of", self.recipe.training.too_high)
        if self.average:
            self.average.update_parameters(self.model)
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)

    def learn(self, batch: Batch, loss: Tensor | None) -> None:
        """Let the skipper see the losses that the windows of all ranks had."""
        if self.skipper and batch.choice and loss is not None:
            losses_B = torch.cat(self.world.gather(self.window_losses))
            self.skipper.observe(batch.choice, losses_B.double().cpu().numpy())

    def account(self, batch: Batch, loss: Tensor | None, norm: float, seconds: float) -> None:
        """Note what the step learnt from, and charge what it cost; `loss` is None where no pass was made."""
        learnt = math.isfinite(norm)
        if learnt:
            self.metrics.values["grad_norm"] = norm
        if learnt and loss is not None:
            self.seen[batch.ids] = True
            self.metrics.observe(loss)
        self.seconds += seconds
        if self.skipper and batch.choice:
            seconds -= self.skipper.charge(self.ledger, self.recipe.window, self.world.size)
        if self.cache:
            seconds -= self.cache.charge(self.ledger)
        if learnt:
            self.charges.update(self.update_seconds, self.average)
            seconds -= self.update_seconds
        windows = 0 if loss is None else len(batch.ids)
        self.charges.passes(windows, seconds)
        if windows and (compressing := self.parallel.compression_flops()):
            self.ledger.charge("gradient_compression", flops=compressing)

    def _settle(self) -> tuple[int, float] | None:
        """The pass before the first step, where DDP needs one: all ranks' windows in it, and seconds."""
        if not self.parallel.settles:
            return None
        started = time.perf_counter()
        rows = -(-self.recipe.batch_windows // (self.world.size * self.recipe.training.accumulate))
        first = np.arange(min(rows, len(self.data.train)))
        batch = self.batches.of(first, first)
        self.parallel.settle(self.objective, *batch.inputs)
        return len(first) * self.world.size, time.perf_counter() - started

    def charge_settling(self) -> None:
        if self.settled:
            self.charges.settling(*self.settled)

    def refuse(self, error: Diverged) -> None:
        """Leave the step out where the recipe says so, else raise `error`."""
        if not self.recovery.skips(self.step, error):
            raise error
        self.recovery.leave_out(self.schedule)
        self.optimizer.zero_grad(set_to_none=True)

    def check_parameters(self, when: str, remedy: str) -> None:
        """Raise Diverged naming the first parameter that is not finite."""
        if bad := first_non_finite(self.model.named_parameters()):
            raise Diverged(f"parameter {bad} is not finite {when} step {self.step}: {remedy}")

    def validate(self) -> None:
        """Mean loss in nats a token over the first `eval_windows` validation windows, shared by the ranks.

        Raises Diverged where it is not finite.
        """
        started = time.perf_counter()
        windows = self.data.validation[: self.recipe.training.eval_windows]
        model = self.average.module if self.average else self.model
        found = validated(model, windows, self.recipe.training, self.world)
        if not math.isfinite(found.loss):
            too_high = self.recipe.training.too_high
            raise Diverged(f"validation loss {found.loss} at step {self.step}: {too_high}")
        self.validation_loss = found.loss
        self.metrics.values["validation_loss"] = self.validation_loss
        if isinstance(self.schedule, PlateauLR):
            self.schedule.observe_validation(self.validation_loss)
        if self.adjuster:
            self.batches.drop()  # drawn before the sampler learns of this loss
            self.sampler.advance(self.step, self.adjuster.update(self.validation_loss))
        self.charges.validation(found, len(windows), started)

    def log(self) -> None:
        """Write one line: the mean over the steps since the last line, over all ranks."""
        loss = self.metrics.take_loss()
        if loss is not None and isinstance(self.schedule, LossTrendLR):
            self.schedule.observe(loss)
        values = self.metrics.values
        values["loss"] = math.nan if loss is None else loss
        if self.skipper:
            values.update(self.skipper.measurements(self.step))
        if self.cache:
            values.update(self.cache.measurements())
        if self.reporter:
            self.reporter.log(
                self.step,
                tokens=self.tokens,
                seconds=self.seconds,
                lr=self.recovery.rate(self.optimizer),
                share=self.sampler.share(self.step),
                total_flops=self.ledger.total_flops,
                **self.metrics.line(self.tokens, self.seconds),
            )
        self.metrics.begin(self.tokens, self.seconds)

    @property
    def tokens(self) -> int:
        return self.step * self.recipe.batch_windows * self.recipe.window

    def result(self) -> TrainResult:
        return TrainResult(
            steps=self.step,
            loss=self.metrics.last_loss,
            validation_loss=self.validation_loss,
            tokens=self.tokens,
            unique_tokens=int(self.seen.sum()) * self.recipe.window,
            divergences=tuple(self.recovery.events),
        )

    @property
    def parts(self) -> dict[str, Stateful]:
        """What keeps a state of its own, by its name in a checkpoint; what is off is absent."""
        parts: dict[str, Stateful | None] = {
            **self.parallel.parts(self.optimizer),
            "schedule": self.schedule,
            "metrics": self.metrics,
            "sampler": self.sampler,
            "ledger": self.ledger,
            "adjuster": self.adjuster,
            "average": self.average,
            "recovery": self.recovery if self.recovery.settings else None,
            "skipper": self.skipper,
            "gradient_cache": self.cache,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; a collective call, since every rank's RNG is in it."""
        return {
            **{name: part.state_dict() for name, part in self.parts.items()},
            "step": self.step,
            "rng": self.world.gather(rng_state(self.device)),
            "seen": torch.from_numpy(np.packbits(self.seen)),
            "seconds": self.seconds,
            "validation_loss": self.validation_loss,
        }

    def save(self, checkpointer: Checkpointer, validation_loss: float | None) -> None:
        """Have a checkpoint written behind the loop; a collective call."""
        with self.clock.phase("checkpoint"):
            state = self.state_dict()
            if self.world.rank == 0:
                checkpointer.save_behind(self.step, state, validation_loss)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches.drop()
        self.step, self.seconds = state["step"], state["seconds"]
        self.metrics.begin(self.tokens, self.seconds)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        if self.world.rank < len(state["rng"]):
            set_rng_state(self.device, state["rng"][self.world.rank])
        self.seen = np.unpackbits(state["seen"].numpy(), count=len(self.seen)).astype(bool)
        self.validation_loss = state["validation_loss"]
