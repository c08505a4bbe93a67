"""One run of the active-learning loop: its rounds as artifacts, each made from those before it.

    training_set ─► model 0 ─► pool 1 ─► scored 1 ─► selected 1 ─► model 1 ─► pool 2 … model R ─► evaluation

The models are one training run with one schedule, which pauses between rounds: model r goes on from the
checkpoint of model r - 1, on the same windows and those that have joined. The stages that score and select
are those of a recipe with `selection`, over the pool and with the model itself in the proxy's place.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bkray.config import Recipe, UserError
from bkray.config.preparation import Selection
from bkray.corpus.schema import windows_schema
from bkray.corpus.windows import read_columns
from bkray.reporting.progress import Progress
from bkray.runtime.artifacts import Artifact, key_of
from bkray.runtime.evaluation import evaluate
from bkray.runtime.pipeline import build_stage
from bkray.runtime.plan import Plan, Stage
from bkray.runtime.selection import kept_of
from bkray.runtime.stages import map_tables, read_parts, write_parts
from bkray.runtime.training import Job, Round, train_job
from bkray.runtime.work import Outcome, Work
from bkray.selection import ActiveLearningLoop
from bkray.training import Checkpointer, Ledger

SPLIT = "test"  # that the models at the end are judged on


class Built(NamedTuple):
    stage: Stage
    artifact: Artifact


@dataclass(frozen=True)
class LoopRun:
    """What one run is: how its windows are chosen, and everything else in its recipe."""

    plan: Plan
    """Of the run's recipe: its `selection`, null where all windows are there from the start, and its seed."""
    data: dict[str, Built]
    """windows, tokenizer and training_set, the same for all runs."""
    folder: Path
    start: float = 1.0
    pool: float = 1.0
    rounds: int = 0

    @property
    def recipe(self) -> Recipe:
        return self.plan.recipe

    @property
    def key(self) -> str:
        """Of the checkpoints: what every round of the run depends on."""
        shares = [self.start, self.pool, self.rounds]
        return key_of(self.plan.stages["model"].key, shares, self.data["training_set"].stage.key)


@dataclass(frozen=True)
class DoneRound:
    """A finished round: its model, and what chose the windows that joined before it was trained."""

    model: Artifact
    windows: int
    """That it was trained on."""
    steps: int
    selecting: dict[str, Artifact] = field(default_factory=dict)
    """pool, scored, selected; nothing in round 0."""

    @property
    def artifacts(self) -> list[Artifact]:
        return [*self.selecting.values(), self.model]


def check_pools(loop: ActiveLearningLoop, settings: Selection) -> None:
    """Refuse rounds of which one would add all that it scores, or has nothing to score."""
    for number, size in enumerate(loop.pool_sizes(), start=1):
        try:
            kept_of(settings, size)
        except UserError as error:
            raise UserError(f"round {number} scores {size} of {len(loop.ids):,} windows: {error}") from error


class LoopRunner:
    """Builds what `run` has not got yet, in order; what is there is kept."""

    def __init__(self, run: LoopRun, cpus: int, progress: Progress) -> None:
        self.run, self.cpus, self.progress = run, cpus, progress
        self.ids = read_columns(run.data["training_set"].artifact.parts, ["window_id"])[
            "window_id"
        ].to_numpy()
        keep = run.recipe.selection.keep if run.recipe.selection else 1.0
        self.loop = ActiveLearningLoop(
            self.ids, start=run.start, pool=run.pool, keep=keep, rounds=run.rounds, seed=run.recipe.seed
        )
        if run.recipe.selection:
            check_pools(self.loop, run.recipe.selection)
        self.starts = self.loop.starts(run.recipe.steps)
        self.ends = [*self.starts[1:], run.recipe.steps]
        if any(start == end for start, end in zip(self.starts, self.ends, strict=True)):
            raise UserError(
                f"training.tokens {run.recipe.training.tokens} are {run.recipe.steps} steps, too few for "
                f"rounds {run.rounds} to begin at steps {self.starts}: raise training.tokens, or lower "
                "rounds or training.batch_tokens"
            )

    def rounds(self) -> list[DoneRound]:
        """All rounds, in order."""
        done: list[DoneRound] = []
        model: Built | None = None
        for number, (start, end) in enumerate(zip(self.starts, self.ends, strict=True)):
            selecting = self._join(number, model) if model else {}
            model = self._train(number, end, model, selecting)
            chose = {name: built.artifact for name, built in selecting.items()}
            done.append(DoneRound(model.artifact, len(self.loop.taken), end - start, chose))
        return done

    def evaluation(self, last: Artifact) -> Artifact:
        """The nats of every held-out window under the last round's model, which ends the run."""
        key = last.manifest["key"]
        model = Built(Stage("model", last.path, key, {}), last)
        inputs = {"windows": self.run.data["windows"], "model": model}
        done = self._build("evaluation", SPLIT, _evaluation, inputs)
        shutil.rmtree(self.run.folder / "checkpoints", ignore_errors=True)
        return done.artifact

    def _join(self, number: int, model: Built) -> dict[str, Built]:
        """Let the windows of the round join; returns what chose them, nothing where chance does."""
        selection = self.run.recipe.selection
        assert selection
        if selection.kind == "random":
            self.loop.add(self.loop.any_of_pool())
            return {}
        selecting = self._select(number, model)
        self.loop.add(_ids(selecting["selected"].artifact))
        return selecting

    def _select(self, number: int, model: Built) -> dict[str, Built]:
        """The round's pool, and the stages of the plan that score it and select of it."""
        ids = self.loop.pool()
        made = {
            "pool": self._build(
                "pool",
                [number, self.run.pool, self.run.recipe.seed],
                lambda work: _pool(work, ids),
                {"training_set": self.run.data["training_set"], "model": model},
            )
        }
        inputs = {"windows": made["pool"], "tokenizer": self.run.data["tokenizer"], "proxy": model}
        names = list(self.run.plan.stages)
        for name in names[names.index("windows") + 1 : names.index("selected") + 1]:
            if name != "proxy":
                made[name] = inputs[name] = self._again(self.run.plan.stages[name], inputs)
        return made

    def _again(self, stage: Stage, inputs: dict[str, Built]) -> Built:
        """A stage of the plan, on `inputs` of the same names as its own."""
        own = {name: inputs[name] for name in stage.inputs}
        return self._build(stage.name, stage.key, None, own, stage.provides)

    def _train(self, number: int, until: int, before: Built | None, selecting: dict[str, Built]) -> Built:
        run = self.run
        joined = tuple(np.searchsorted(self.ids, part) for part in self.loop.joined)
        part = Round(joined, tuple(self.starts), until)
        inputs = dict(run.data)
        if before:
            inputs["before"] = before
        if selecting:
            inputs["selected"] = selecting["selected"]
        config = [run.key, number, until]
        return self._build(
            "model", config, lambda work: _round(work, run, part), inputs, path=run.folder / f"round-{number}"
        )

    def _build(
        self,
        name: str,
        config: Any,
        builder: Callable[[Work], Outcome] | None,
        inputs: dict[str, Built],
        provides: tuple[str, ...] = (),
        path: Path | None = None,
    ) -> Built:
        sources = {source: built.stage for source, built in inputs.items()}
        key = key_of(name, config, {source: stage.key for source, stage in sources.items()})
        path = path or self.run.data["windows"].stage.path.parent / f"{name}-{key}"
        stage = Stage(name, path, key, sources, provides=provides)
        artifacts = {source: built.artifact for source, built in inputs.items()}
        return Built(stage, build_stage(self.run.plan, stage, artifacts, self.cpus, self.progress, builder))


def _ids(artifact: Artifact) -> np.ndarray:
    return np.asarray(read_columns(artifact.parts, ["window_id"])["window_id"].to_numpy())


# --- the stages that only a loop has -----------------------------------------------------------------


def _pool(work: Work, ids: np.ndarray) -> Outcome:
    """The windows of a round's pool."""
    sampled = map_tables(read_parts(work.source.parts), _OfIds(ids))
    rows = write_parts(sampled, work.directory, windows_schema(work.recipe.window), ["window_id"])
    return Outcome(rows, f"{rows:,} of {work.source.rows:,} windows", details={"windows": {"train": rows}})


class _OfIds:
    """Keeps the windows of the given ids."""

    def __init__(self, ids: np.ndarray) -> None:
        self.ids = pa.array(ids)

    def __call__(self, table: pa.Table) -> pa.Table:
        return table.filter(pc.is_in(table["window_id"], value_set=self.ids))


def _round(work: Work, run: LoopRun, part: Round) -> Outcome:
    """Train to the end of the round, from the checkpoint of the one before; charged is its own part."""
    job = Job(
        recipe=work.recipe,
        key=run.key,
        training_parts=work.inputs["training_set"].parts,
        window_parts=work.inputs["windows"].parts,
        tokenizer=work.inputs["tokenizer"].path / "tokenizer.json",
        run=run.folder,
        export=work.directory / "exported",
        start=run.plan.start,
        round=part,
    )
    Checkpointer(job.checkpoints, job.key).drop_after(part.until)
    outcome = train_job(work, job)
    assert outcome.ledger
    if before := work.inputs.get("before"):
        config = json.loads((before.path / "config.json").read_text())
        outcome.ledger = _less(outcome.ledger, config["training"]["ledger"])
    return outcome


def _less(ledger: Ledger, before: dict[str, dict[str, Any]]) -> Ledger:
    """What was spent since `before`, a table of the same run; a round made anew may have spent less."""
    own = {
        kind: {name: max(0, amount - before.get(kind, {}).get(name, 0)) for name, amount in cost.items()}
        for kind, cost in ledger.table().items()
    }
    return Ledger(own)


def _evaluation(work: Work) -> Outcome:
    windows, exported = work.inputs["windows"], work.inputs["model"].path
    ledger = Ledger()
    held_out = evaluate(work, windows, {"nats": exported}, ledger)["nats"]
    summary = f"{held_out.bits_per_byte:.4f} bits per byte on {held_out.windows:,} {SPLIT} windows"
    return Outcome(held_out.windows, summary, ledger=ledger, details={"held_out": held_out.as_dict(SPLIT)})
