"""What transfer saves: bench_transfer.py FILE [KEY=VALUE …] [--targets NAME=CORPUS …] [--epochs 0.25 …]
[--budgets 0.03 …] [--seeds 0 …] [--scratch KEY=VALUE …] [--try SETTING …] [--scratch-try SETTING …]
[--try-at 0.05 …] [--scratch-try-at 0.25 …] [--teacher KEY=VALUE … [--student-layers 2]] [--cpus 2]

Trains each target from scratch for some shares of an epoch of its text (the levels), and from the one
pretrained model of a transfer file for others (the budgets), every run with a completed schedule. Prints what
it cost to reach each level, with the interval of the saving over the seeds, and the same of all targets
together, for which pretraining is paid once. With --teacher the other side is no tuned model but a student
from scratch: it learns from the recipe from scratch with those overrides, trained first for each seed; with
--student-layers it does not start from scratch, but from so many layers of that teacher.

settings to try, a side ─► short runs, first seed ─► best on validation ─► levels, budgets x seeds ─► test

A SETTING is one argument of overrides: 'training.lr=4e-3 training.batch_tokens=512'. Both sides try as many,
for as many shares of an epoch; a run takes what was best at the share nearest to its own. Trials see no test
split. Costs are FLOPs of the ledger without looks at held-out text that nothing steers by, and without what
interruptions lost; those of the trials count every look, and stand beside.

Runs are ordinary runs under --out, named after target, side, tokens, seed and setting: those that are done
are not done again, an interrupted one goes on.
"""

from __future__ import annotations

import argparse
import math
import shlex
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transfer_table import NOTHING, Level, Runs, Spent, flops, table_of_levels, table_of_runs

from bkray.config import Recipe, UserError, apply_overrides, parse_recipe
from bkray.config.loading import parse_section
from bkray.config.schedule import Plateau
from bkray.config.transfer import Target, load_transfer
from bkray.corpus import list_shards
from bkray.corpus.windows import first_rows
from bkray.evaluation import HeldOut, Saving
from bkray.reporting import RunLog
from bkray.reporting.progress import Progress
from bkray.runtime.artifacts import key_of
from bkray.runtime.cluster import cluster
from bkray.runtime.compression import parse_method, smaller
from bkray.runtime.exits import find_user_error
from bkray.runtime.folder import COMPRESSED
from bkray.runtime.pipeline import RunResult, run_pipeline
from bkray.runtime.results import spent
from bkray.runtime.transfer import plan_phases
from bkray.training.divergence.recovery import Diverged
from bkray.training.state.export import write_export

OF_TUNING = (
    "start_from",
    "start_vocabulary",
    "freeze",
    "unfreeze",
    "layer_decay",
    "replay",
    "activation_cache",
    "distillation",
)
Setting = tuple[str, ...]
"""Overrides of the recipe of a side."""


@dataclass(frozen=True)
class Planned:
    """A run, and what its model's start or teacher has cost."""

    recipe: Recipe
    out: Path
    shared: Spent = NOTHING


@dataclass(frozen=True)
class Side:
    """How a run for so many tokens, of a seed and a setting, is planned; what is tried first, and at which
    shares of an epoch."""

    name: str
    plan: Callable[[int, int, Setting], Planned]
    settings: list[Setting]
    shares: list[float]


@dataclass(frozen=True)
class Chosen:
    """The setting of each share of an epoch that was tried, and the FLOPs of all trials."""

    settings: dict[float, Setting]
    flops: float = 0.0

    def at(self, share: float) -> Setting:
        """Of the nearest share, by ratio."""
        return self.settings[min(self.settings, key=lambda tried: abs(math.log(tried / share)))]


class Bench:
    """Runs of one target of a transfer file, found again by their names."""

    def __init__(
        self,
        path: Path,
        out: Path,
        overrides: Setting,
        scratch: Setting = (),
        teacher: Setting = (),
        student_layers: int | None = None,
    ) -> None:
        self.path, self.out, self.overrides = path, out, overrides
        self.scratch, self.teacher, self.student_layers = scratch, teacher, student_layers
        self.progress, self.artifacts = Progress(), out / "shared-artifacts"
        self.transfer, self.values = load_transfer(path, self.overrides)
        self.name = self.transfer.name

    def epoch(self) -> int:
        """Tokens of the target's training text."""
        recipe = self._recipe("epoch", 0)
        made = self.run(Planned(recipe, self.out), "training_set").artifacts
        return made["training_set"].rows * recipe.window

    def from_scratch(self, tokens: int, seed: int, setting: Setting) -> Planned:
        given = (*setting, f"training.tokens={tokens}")
        return Planned(self._recipe(_named(f"scratch-{tokens}", setting), seed, given), self.out)

    def tuned(self, tokens: int, seed: int, setting: Setting) -> Planned:
        """The last phase; those before it are trained first."""
        name = f"name={self.name}-{_named(f'tuned-{tokens}', setting)}-{seed}"
        given = (*self.overrides, *setting, name, f"seed={seed}", f"training.tokens={tokens}")
        *before, last = plan_phases(self.path, given, self.out)
        shared = NOTHING
        for phase in before:
            shared += spent_by(run_pipeline(phase.recipe, phase.out, progress=self.progress), phase.recipe)
        return Planned(last.recipe, last.out, shared)

    def pretrained(self) -> list[str]:
        """The phases before the last by name and hash: targets that share a model have the same."""
        *before, _ = plan_phases(self.path, self.overrides, self.out)
        return [phase.recipe.name for phase in before]

    def distilled(self, tokens: int, seed: int, setting: Setting) -> Planned:
        """The student of a teacher, which is trained first."""
        teacher = self._recipe(_named("teacher", self.teacher), seed, self.teacher)
        trained = self.run(Planned(teacher, self.out))
        given = ["tokenizer={}", f"training.distillation={{teachers: ['{trained.folder / 'model'}']}}"]
        if self.student_layers is not None:
            given.append(f"training.start_from={self._shorter(trained.folder / 'model')}")
        given += [*setting, f"training.tokens={tokens}"]
        name = _named(f"distilled-{tokens}", (*self.teacher, f"{self.student_layers}", *setting))
        return Planned(self._recipe(name, seed, tuple(given)), self.out, spent_by(trained, teacher))

    def _shorter(self, model: Path) -> Path:
        """The folder, in the place of `bkray compress`, of a copy with `student_layers` layers."""
        method = parse_method(f"layers:{self.student_layers}")
        folder = model.parent / COMPRESSED / method.folder
        if not folder.exists():
            folder.parent.mkdir(exist_ok=True)
            tensors, config = smaller(method, model, [])
            write_export(folder, tensors, model / "tokenizer.json", config)
        return folder

    def run(self, planned: Planned, until: str = "evaluation") -> RunResult:
        return run_pipeline(
            planned.recipe, planned.out, until=until, artifacts=self.artifacts, progress=self.progress
        )

    def _recipe(self, name: str, seed: int, overrides: Setting = ()) -> Recipe:
        """The target's without what came before, of the pretrained architecture; its tokenizer is trained on
        the target."""
        pretrained = parse_recipe(self.values[self.transfer.phases[0].name])
        target = self.values[self.transfer.phases[-1].name]
        training = {k: v for k, v in (target.get("training") or {}).items() if k not in OF_TUNING}
        own: dict[str, Any] = {
            "name": f"{self.name}-{name}-{seed}",
            "seed": seed,
            "model": pretrained.model.model_dump(mode="json"),
            "tokenizer": {"vocab_size": pretrained.tokenizer.vocab_size},
            "training": training,
        }
        return parse_recipe(apply_overrides({**target, **own}, [*self.scratch, *overrides]))


def _named(what: str, setting: Setting) -> str:
    return f"{what}-{key_of(setting)}" if setting else what


# --- what a run says ---------------------------------------------------------------------------------


def spent_by(run: RunResult, recipe: Recipe, every_look: bool = False) -> Spent:
    """Without looks at held-out text, unless something steers by them, and what interruptions lost."""
    adjusted = recipe.curriculum is not None and recipe.curriculum.adjuster is not None
    steered = adjusted or isinstance(recipe.training.schedule, Plateau)
    left_out = {"evaluation", "lost"} | (set() if every_look or steered else {"validation"})
    by_kind = spent(run.artifacts.values())[0].table()
    counted = {kind: each for kind, each in by_kind.items() if kind not in left_out}
    return Spent(
        flops=sum(each["flops"] for each in counted.values()),
        tokens=counted["training"]["tokens"],
        unique_tokens=run.artifacts["model"].manifest["details"]["unique_tokens"],
        seconds=sum(each["seconds"] for kind, each in counted.items() if kind != "preparation"),
        preparation=counted["preparation"]["seconds"] if "preparation" in counted else 0.0,
    )


def tested(bench: Bench, planned: Planned) -> tuple[Spent, float]:
    """What was spent, and bits per byte on the test split."""
    run = bench.run(planned)
    assert run.summary
    return spent_by(run, planned.recipe), run.summary["held_out"]["bits_per_byte"]


def tried(bench: Bench, planned: Planned) -> tuple[float, float]:
    """Cost with every look, and bits per byte on the first `training.eval_windows` of the validation split;
    infinitely many of a run that diverged."""
    recipe = planned.recipe
    try:
        run = bench.run(planned, "model")
    except Exception as error:
        if not isinstance(find_user_error(error), Diverged):
            raise
        log = planned.out / recipe.name / "metrics.jsonl"
        lines = RunLog.read(log) if log.exists() else []
        return lines[-1]["total_flops"] if lines else 0.0, math.inf
    loss = run.artifacts["model"].manifest["details"]["validation_loss"]
    parts, looked_at = run.artifacts["windows"].parts, recipe.training.eval_windows
    windows = first_rows(parts, ["target_bytes"], "validation", looked_at)["target_bytes"].to_pylist()
    tokens = len(windows) * recipe.window
    held_out = HeldOut(loss * tokens, tokens, sum(windows), len(windows))
    return spent_by(run, recipe, every_look=True).flops, held_out.bits_per_byte


# --- choosing and measuring --------------------------------------------------------------------------


def choose(bench: Bench, side: Side, epoch: int, seed: int) -> Chosen:
    """The best setting on validation for each share, of one seed; nothing is run where there is no choice."""
    if len(side.settings) == 1:
        print(f"{bench.name}, {side.name}: one setting, not chosen: {shown(side.settings[0])}", flush=True)
        return Chosen({share: side.settings[0] for share in side.shares})
    chosen, spent_in_all = {}, 0.0
    for share in side.shares:
        bits = {}
        for setting in side.settings:
            spent_on, bits[setting] = tried(bench, side.plan(round(share * epoch), seed, setting))
            spent_in_all += spent_on
        chosen[share] = min(bits, key=lambda setting: bits[setting])
        each = "; ".join(f"{shown(setting)} {found:.4f}" for setting, found in bits.items())
        print(f"{bench.name}, {side.name}, {share:g} of an epoch, validation, seed {seed}: {each}")
        print(f"  chosen of {len(bits)}: {shown(chosen[share])}", flush=True)
    trials = len(side.settings) * len(side.shares)
    print(f"{bench.name}, {side.name}: {trials} trials, {flops(spent_in_all)} FLOPs", flush=True)
    return Chosen(chosen, spent_in_all)


def shown(setting: Setting) -> str:
    return shlex.join(setting) or "as given"


def measure(
    bench: Bench, sides: tuple[Side, Side], epochs: list[float], budgets: list[float], seeds: list[int]
) -> tuple[list[Level], list[Runs]]:
    """What the second side pays for what the first has reached, each with what was best for it."""
    epoch = bench.epoch()
    print(f"An epoch of {bench.name} is {epoch:,} tokens.", flush=True)
    settings = [choose(bench, side, epoch, seeds[0]) for side in sides]

    def planned(which: int, share: float, seed: int) -> Planned:
        return sides[which].plan(round(share * epoch), seed, settings[which].at(share))

    plans = [[planned(1, share, seed) for share in budgets] for seed in seeds]
    before = [plan.shared for plan, *_ in plans]
    shared = statistics.fmean(each.flops for each in before)
    print(f"{bench.name}, {sides[1].name}: {flops(shared)} FLOPs before", flush=True)
    of_budgets = [
        runs(bench, sides[1].name, share, each)
        for share, each in zip(budgets, zip(*plans, strict=True), strict=True)
    ]
    curves = list(zip(*(each.points for each in of_budgets), strict=True))
    for seed, curve in zip(seeds, curves, strict=True):
        points = ", ".join(f"{bits:.4f} at {flops(spent_on)}" for spent_on, bits in curve)
        print(f"{bench.name}, {sides[1].name}, seed {seed}, test: {points}", flush=True)
    for share in epochs:
        if len(sides[0].settings) > 1 and share not in settings[0].settings:
            print(f"{bench.name}, {sides[0].name}: nothing was tried at {share:g} of an epoch", flush=True)
    of_levels = [
        runs(bench, sides[0].name, share, [planned(0, share, seed) for seed in seeds]) for share in epochs
    ]
    trials = settings[0].flops, settings[1].flops
    levels = [
        Level(bench.name, share, statistics.fmean(each.bits), Saving.of(each.points, curves), trials, shared)
        for share, each in zip(epochs, of_levels, strict=True)
    ]
    return levels, [Runs(bench.name, "before", before), *of_budgets, *of_levels]


def runs(bench: Bench, side: str, share: float, planned: Sequence[Planned]) -> Runs:
    """Of one side and share of an epoch, a seed each."""
    spent_on, bits = zip(*(tested(bench, each) for each in planned), strict=True)
    return Runs(bench.name, f"{side}, {share:g} of an epoch", spent_on, bits)


def sharing(phase: str, corpora: dict[str, str], seeds: list[int]) -> str:
    """The override by which all targets share what `phase` trains: nothing that they hold out is in it."""
    parsed = [parse_section(Target, {"corpus": yaml.safe_load(text)}, text) for text in corpora.values()]
    carved = any(shard.carve for target in parsed for shard in list_shards(target.corpus))
    named = ", ".join(f"{name}: {text}" for name, text in corpora.items())
    drawn = f", seeds: {seeds}" if carved else ""
    return f"{phase}.cleaning.leakage={{held_out_of: {{{named}}}{drawn}}}"


def check_shared(benches: Sequence[Bench]) -> None:
    """Raise UserError where a target would pretrain a model of its own, which no other could share."""
    first, *others = [(bench.name, bench.pretrained()) for bench in benches]
    for name, pretrained in others:
        if pretrained != first[1]:
            raise UserError(
                f"{first[0]} and {name} would not share a pretrained model: {', '.join(first[1])} and "
                f"{', '.join(pretrained)}; instead of tokenizer.corpus=target and in cleaning.nearest.to "
                "name a corpus that is the same for all of them, such as {kind: mixed, sources: […]}"
            )


def main(given: argparse.Namespace) -> None:
    def bench(*overrides: str) -> Bench:
        own, sides = (*overrides, *given.overrides), (tuple(given.scratch), tuple(given.teacher))
        return Bench(given.file, given.out.absolute(), own, *sides, given.student_layers)

    def measured(one: Bench) -> tuple[list[Level], list[Runs]]:
        arm = ("distilled", one.distilled) if given.teacher else ("tuned", one.tuned)
        sides = (
            Side("from scratch", one.from_scratch, given.scratch_settings, given.scratch_try_at),
            Side(*arm, given.settings, given.try_at),
        )
        return measure(one, sides, given.epochs, given.budgets, given.seeds)

    if corpora := dict(text.split("=", 1) for text in given.targets):
        transfer, _ = load_transfer(given.file)
        shared = sharing(transfer.phases[0].name, corpora, given.seeds)
        benches = [bench(shared, f"name={name}", f"corpus={text}") for name, text in corpora.items()]
        if not given.teacher:
            check_shared(benches)
    else:
        benches = [bench()]
    with cluster(given.cpus):
        levels, taken = zip(*(measured(one) for one in benches), strict=True)
    range_of_seeds = len(given.seeds) < 4  # one resample of 27 is the lowest of three alone: no 95 % is there
    intervals = "the range of the seeds" if range_of_seeds else "95 %, paired bootstrap"
    print(f"seeds {given.seeds}; in brackets: {intervals}")
    print(table_of_levels(levels, students=bool(given.teacher)))
    print(f"\n{table_of_runs(taken)}")


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("file", type=Path)
    add("overrides", nargs="*")
    add("--targets", nargs="+", default=[], metavar="NAME=CORPUS", help="one pretrained model")
    add("--epochs", type=float, nargs="+", default=[0.25, 0.5, 1.0], help="from scratch: the levels")
    add("--budgets", type=float, nargs="+", default=[0.03, 0.06, 0.12, 0.25], help="of the other side")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--scratch", nargs="+", default=[], metavar="KEY=VALUE", help="of all runs from scratch")
    add("--teacher", nargs="+", default=[], metavar="KEY=VALUE", help="distil from such a run from scratch")
    add("--try", dest="settings", nargs="+", type=setting, default=[()], metavar="SETTING")
    add("--scratch-try", dest="scratch_settings", nargs="+", type=setting, default=[()], metavar="SETTING")
    add("--try-at", type=float, nargs="+", default=[0.05], help="shares of an epoch")
    add("--scratch-try-at", type=float, nargs="+", default=[0.25], help="shares of an epoch")
    add("--student-layers", type=int, metavar="N", help="start from so many of the teacher's layers")
    add("--cpus", type=int)
    add("--out", type=Path, default=Path("runs"))
    given = parser.parse_args(argv)
    if given.student_layers is not None and not given.teacher:
        parser.error("--student-layers are those of a teacher: give --teacher as well")
    own, scratch = (given.settings, given.try_at), (given.scratch_settings, given.scratch_try_at)
    counts = [[len(set(values)) for values in side] for side in (own, scratch)]
    if counts[0] != counts[1]:
        parser.error(f"different settings and shares to try: {counts[0]}, from scratch {counts[1]}: as many")
    return given


def setting(text: str) -> Setting:
    return tuple(shlex.split(text))


if __name__ == "__main__":
    main(arguments())
