"""The training loop. It imports no ray: the world is torch.distributed's, results go to the reporter.

sampler.ids(step) ─► this rank's windows ─► forward, backward (DDP averages) ─► clip ─► optimizer, schedule
                               │
         every so many steps: reporter (a log line), validation ─► adjuster ─► sampler, checkpointer
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from bkray.config import Recipe, UserError
from bkray.curriculum import CurriculumSampler, DifficultyAdjuster
from bkray.model import LanguageModel
from bkray.training.checkpoint import Checkpointer
from bkray.training.finite import first_non_finite
from bkray.training.flops import forward_cost, optimizer_flops, recomputed_flops
from bkray.training.hardware import autocast
from bkray.training.ledger import Ledger
from bkray.training.objective import Objective, token_losses
from bkray.training.optimizers import build_optimizer
from bkray.training.parallel import World
from bkray.training.schedules import LossTrendLR, PlateauLR, build_schedule
from bkray.training.skipping import Choice, build_skipper

_EVAL_BATCH = 16


class Reporter(Protocol):
    """Where log lines go; `bkray.reporting.RunLog` is one."""

    def log(self, step: int, **values: Any) -> None: ...

    def truncate_after(self, step: int) -> dict[str, Any] | None:
        """Drop the lines beyond `step`; the last of them tells what an interrupted attempt had spent."""


class Stateful(Protocol):
    """What a checkpoint keeps; `load_state_dict` of what `state_dict` gave goes on as if never stopped."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


@dataclass(frozen=True)
class WindowData:
    """Token ids of the training windows (W, N + 1) and of the validation windows (W', N + 1)."""

    train: np.ndarray
    validation: np.ndarray


@dataclass(frozen=True)
class Batch:
    """The windows of one global batch."""

    ids: np.ndarray
    """(B,) int64: their positions in the training windows, the same on every rank."""
    tokens: Tensor
    """(B / world size, N + 1) int64: the windows that are this rank's, in the order of `ids`."""
    choice: Choice | None = None
    """How they were chosen among candidates, where a step skips some."""


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
) -> TrainResult:
    """Train `model` in place for `recipe.steps` steps, going on from the newest checkpoint if there is one.

    Every rank of an initialised process group calls this with the same arguments; only rank 0's reporter is
    used. Raises UserError where loss, gradient or a parameter is not finite.
    """
    run = TrainingRun(model, data, sampler, recipe, reporter, ledger or Ledger(), adjuster)
    settings = recipe.training
    if checkpointer and (state := checkpointer.load()):
        run.load_state_dict(state)
    if run.reporter and (dropped := run.reporter.truncate_after(run.step)):
        run.charge_lost(dropped)
    run.check_parameters("before", "mend how the model starts")
    while run.step < recipe.steps:
        run.train_step()
        last = run.step == recipe.steps
        if len(data.validation) and (last or run.step % settings.eval_every == 0):
            run.validate()
        if last or run.step % settings.log_every == 0:
            run.log()
        if checkpointer and (last or run.step % settings.checkpoint_every == 0):
            state = run.state_dict()
            if run.world.rank == 0:
                checkpointer.save(run.step, state)
    return run.result()


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
        self.data, self.sampler, self.recipe, self.ledger, self.adjuster = (
            data,
            sampler,
            recipe,
            ledger,
            adjuster,
        )
        self.reporter = reporter if self.world.rank == 0 else None
        self.model = model
        self.device = next(model.parameters()).device
        self.forward_cost = forward_cost(model, recipe.window)
        self.training_cost = forward_cost(model, recipe.window, training_mode=True)
        self.objective = Objective(model, recipe.training)
        self.parallel_objective = self.world.wrap(self.objective)
        self.recomputed = 0.0
        if isinstance(model, LanguageModel) and recipe.training.activation_checkpointing:
            self.recomputed = recomputed_flops(model, recipe.window) / self.training_cost.full
        self.optimizer = build_optimizer(model, recipe.training)
        self.optimizer_flops = optimizer_flops(self.optimizer) * self.world.size
        self.schedule = build_schedule(self.optimizer, recipe.training, recipe.steps)
        torch.manual_seed(recipe.seed * 1009 + self.world.rank)
        self.skipper = build_skipper(recipe, sampler)
        if self.skipper:
            self.sampler = sampler.drawing(self.skipper.candidates)
        self._window_losses_B = torch.empty(0)  # of this rank's windows, for the skipper
        self.step = 0
        self.seconds = 0.0
        self.seen = np.zeros(len(data.train), dtype=bool)
        self.loss_sum, self.loss_steps = torch.zeros((), dtype=torch.float64), 0
        self.logged: dict[str, float] = {}
        self.validation_loss: float | None = None
        self._logged_at = (0, 0.0)

    def train_step(self) -> None:
        """One global batch: forward, backward, clip, update; charges the ledger."""
        started = time.perf_counter()
        batch = self.draw()
        loss = self.backward(batch)
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.training.clip))
        self._check_finite(float(loss), norm)
        self.update()
        self.learn(batch)
        self.step += 1
        self.account(batch, loss, norm, time.perf_counter() - started)

    def draw(self) -> Batch:
        """The global batch of this step, and the windows of it that are this rank's."""
        ids, choice = self.sampler.ids(self.step), None
        if self.skipper and self.skipper.active(self.step):
            choice = self.skipper.choose(self.step, ids, self.data.train[ids])
            ids = choice.ids
        mine = self.world.part(ids)
        tokens = torch.as_tensor(self.data.train[mine], dtype=torch.int64, device=self.device)
        return Batch(ids, tokens, choice)

    def backward(self, batch: Batch) -> Tensor:
        """Leave the gradient of the batch in the parameters; returns this rank's mean loss, nats a token."""
        self.model.train()
        losses_BN: Tensor = self.parallel_objective(batch.tokens)
        loss = losses_BN.mean()
        minimised = loss
        if self.skipper and batch.choice:
            self._window_losses_B = losses_BN.detach().mean(1)
            minimised = self.skipper.weighted(losses_BN, self.world.part(batch.choice.weights))
        terms = self._option_terms()
        with self.objective.compiling():
            sum(terms.values(), minimised).backward()
        self.objective.auxiliary_losses(1.0)  # blocks that are computed again for backward leave theirs again
        return loss.detach()

    def update(self) -> None:
        """Take the optimizer's step along the gradient and forget the gradient."""
        self.optimizer.step()
        remedy = f"training.lr is {self.recipe.training.lr}, try a lower one"
        self.check_parameters("after the update of", remedy)
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)

    def learn(self, batch: Batch) -> None:
        """Let the skipper see the losses that the windows of all ranks had."""
        if self.skipper and batch.choice:
            losses_B = torch.cat(self.world.gather(self._window_losses_B))
            self.skipper.observe(batch.choice, losses_B.double().cpu().numpy())

    def account(self, batch: Batch, loss: Tensor, norm: float, seconds: float) -> None:
        """Note what the step saw and charge what it cost."""
        self.seen[batch.ids] = True
        self.loss_sum += loss.double().cpu()
        self.loss_steps += 1
        self.logged["grad_norm"] = norm
        self.seconds += seconds
        if self.skipper and batch.choice:
            seconds -= self.skipper.charge(self.ledger, self.recipe.window, self.world.size)
        windows = len(batch.ids)
        flops = (3 + self.recomputed) * self.training_cost.at(self.logged.get("depth")) * windows
        self.ledger.charge("training", flops=flops, tokens=windows * self.recipe.window, seconds=seconds)
        self.ledger.charge("optimizer", flops=self.optimizer_flops)

    def _option_terms(self) -> dict[str, Tensor]:
        """What the model's options add to the loss; they and what the options measured go to the log."""
        terms = self.objective.auxiliary_losses(self.step / self.recipe.steps)
        self.logged.update({name: float(term.detach()) for name, term in terms.items()})
        self.logged.update(self.objective.measurements())
        return terms

    def _check_finite(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        named = self.model.named_parameters()
        bad = first_non_finite((name, p.grad) for name, p in named if p.grad is not None)
        raise UserError(
            f"training diverged at step {self.step}: loss {loss}, gradient norm {norm}, first at "
            f"{bad or 'the loss'}; training.lr is {self.recipe.training.lr}: try a lower one"
        )

    def check_parameters(self, when: str, remedy: str) -> None:
        """Raise UserError naming the first parameter that is not finite."""
        if bad := first_non_finite(self.model.named_parameters()):
            raise UserError(f"parameter {bad} is not finite {when} step {self.step}: {remedy}")

    @torch.no_grad()
    def validate(self) -> None:
        """Mean loss in nats a token over the first `eval_windows` validation windows, shared by the ranks.

        It is not compiled: the batches have other shapes, and each would be compiled for itself.
        """
        started = time.perf_counter()
        windows = self.data.validation[: self.recipe.training.eval_windows]
        mine = windows[self.world.rank :: self.world.size]
        self.model.eval()
        nats = torch.zeros(1, dtype=torch.float64)
        for begin in range(0, len(mine), _EVAL_BATCH):
            tokens = torch.as_tensor(mine[begin : begin + _EVAL_BATCH], dtype=torch.int64, device=self.device)
            with autocast(self.recipe.training, self.device):
                logits_BNV = self.model(tokens[:, :-1])
            nats += token_losses(logits_BNV, tokens[:, 1:]).sum(dtype=torch.float64).cpu()
        tokens_seen = len(windows) * self.recipe.window
        self.validation_loss = float(self.world.total(nats)) / tokens_seen
        self.logged["validation_loss"] = self.validation_loss
        if isinstance(self.schedule, PlateauLR):
            self.schedule.observe_validation(self.validation_loss)
        if self.adjuster:
            self.sampler.advance(self.step, self.adjuster.update(self.validation_loss))
        self.ledger.charge(
            "validation",
            flops=self.forward_cost.at(self.objective.measurements().get("depth")) * len(windows),
            tokens=tokens_seen,
            seconds=time.perf_counter() - started,
        )

    def charge_lost(self, dropped: dict[str, Any]) -> None:
        """Charge the steps that an interrupted attempt logged beyond its last checkpoint."""
        lost = {
            "flops": dropped["total_flops"] - self.ledger.total_flops,
            "tokens": dropped["tokens"] - self.tokens,
            "seconds": dropped["seconds"] - self.seconds,
        }
        self.ledger.charge("lost", **lost)

    def log(self) -> None:
        """Write one line: the mean over the steps since the last line, over all ranks."""
        loss = self.world.total(self.loss_sum.reshape(1).clone()).item() / self.loss_steps / self.world.size
        self.loss_sum, self.loss_steps = torch.zeros((), dtype=torch.float64), 0
        self.logged["loss"] = loss
        if isinstance(self.schedule, LossTrendLR):
            self.schedule.observe(loss)
        if self.skipper:
            self.logged.update(self.skipper.measurements(self.step))
        steps, seconds = self.step - self._logged_at[0], self.seconds - self._logged_at[1]
        self._logged_at = (self.step, self.seconds)
        if self.reporter:
            self.reporter.log(
                self.step,
                tokens=self.tokens,
                seconds=self.seconds,
                lr=self.schedule.get_last_lr()[0],
                share=self.sampler.share(self.step),
                tokens_per_second=steps * self.recipe.batch_windows * self.recipe.window / max(seconds, 1e-9),
                total_flops=self.ledger.total_flops,
                **self.logged,
            )
        self.logged = {"loss": loss}

    @property
    def tokens(self) -> int:
        return self.step * self.recipe.batch_windows * self.recipe.window

    def result(self) -> TrainResult:
        return TrainResult(
            steps=self.step,
            loss=self.logged.get("loss", math.nan),
            validation_loss=self.validation_loss,
            tokens=self.tokens,
            unique_tokens=int(self.seen.sum()) * self.recipe.window,
        )

    @property
    def parts(self) -> dict[str, Stateful]:
        """What keeps a state of its own, by its name in a checkpoint; what is off is absent."""
        parts: dict[str, Stateful | None] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "sampler": self.sampler,
            "ledger": self.ledger,
            "adjuster": self.adjuster,
            "skipper": self.skipper,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; a collective call, since every rank's RNG is in it."""
        return {
            **{name: part.state_dict() for name, part in self.parts.items()},
            "step": self.step,
            "rng": self.world.gather(torch.get_rng_state()),
            "seen": torch.from_numpy(np.packbits(self.seen)),
            "seconds": self.seconds,
            "loss_sums": self.world.gather(self.loss_sum.reshape(1)),
            "loss_steps": self.loss_steps,
            "logged": dict(self.logged),
            "validation_loss": self.validation_loss,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.step = state["step"]
        if self.world.rank < len(state["rng"]):
            torch.set_rng_state(state["rng"][self.world.rank])
            self.loss_sum = state["loss_sums"][self.world.rank].reshape(()).clone()
        self.loss_steps = state["loss_steps"]
        self.seen = np.unpackbits(state["seen"].numpy(), count=len(self.seen)).astype(bool)
        self.seconds = state["seconds"]
        self._logged_at = (self.step, self.seconds)
        self.logged = dict(state["logged"])
        self.validation_loss = state["validation_loss"]
