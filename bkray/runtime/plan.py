"""The plan of a run: its stages, what each depends on, and whether it is already there. No cluster needed.

    documents ─► tokenizer ─► windows ─► scored ─► selected ─► training_set ─► model ─► evaluation
        └─► augmented ──────────┘ └─► proxy ─┘

Stages that a recipe does not ask for are not in its plan.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bkray.config import Recipe
from bkray.corpus import Shard
from bkray.corpus.schema import DOCUMENTS, windows_schema
from bkray.runtime.artifacts import Artifact, key_of

_FORMAT = 3  # part of every key: a change of what the stages write makes new artifacts

_DOCUMENT = tuple(DOCUMENTS.names)
_WINDOW = tuple(windows_schema(1).names)


@dataclass(frozen=True)
class Stage:
    """One arrow of the pipeline: what its result depends on, and where it goes."""

    name: str
    path: Path
    key: str
    inputs: dict[str, Stage] = field(repr=False)
    requires: tuple[str, ...] = ()
    """Columns that the first input must provide."""
    provides: tuple[str, ...] = ()
    """Columns of the result."""

    def find(self) -> Artifact | None:
        return Artifact.find(self.path, self.key)


@dataclass(frozen=True)
class Plan:
    recipe: Recipe
    shards: tuple[Shard, ...]
    stages: dict[str, Stage]

    @property
    def corpus_bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)


class _Builder:
    def __init__(self, artifacts: Path, run: Path) -> None:
        self.artifacts, self.run = artifacts, run
        self.stages: dict[str, Stage] = {}

    def add(
        self,
        name: str,
        config: Any,
        inputs: tuple[str, ...] = (),
        requires: tuple[str, ...] = (),
        provides: tuple[str, ...] = (),
    ) -> None:
        sources = {source: self.stages[source] for source in inputs if source in self.stages}
        key = key_of(_FORMAT, name, config, {source: stage.key for source, stage in sources.items()})
        path = self.run / name if name == "model" else self.artifacts / f"{name}-{key}"
        self.stages[name] = Stage(name, path, key, sources, requires, provides)


def make_plan(recipe: Recipe, shards: list[Shard], run: Path, artifacts: Path | None = None) -> Plan:
    """The stages of `recipe` over `shards`, in order.

    Artifacts go under `artifacts` (`run`/artifacts), the model under `run`.
    """
    builder = _Builder(artifacts or run / "artifacts", run)
    add = builder.add
    seed, proxy = recipe.seed, _section(recipe.proxy)
    windows = "windows"

    prints = [[shard.source, shard.split, shard.fingerprint] for shard in shards]
    add(
        "documents",
        [_section(recipe.corpus, "path"), _section(recipe.cleaning), seed, prints],
        provides=_DOCUMENT,
    )
    add("tokenizer", _section(recipe.tokenizer), ("documents",), ("text", "split"))
    if recipe.augmentation:
        kinds = [_section(kind) for kind in recipe.augmentation]
        add("augmented", [kinds, seed], ("documents",), _DOCUMENT, _DOCUMENT)
    add("windows", recipe.window, ("documents", "augmented", "tokenizer"), _DOCUMENT, _WINDOW)
    if recipe.needs_proxy:
        add("proxy", [proxy, seed], ("windows", "tokenizer"), ("tokens", "split"))
    if recipe.difficulty or recipe.selection:
        chosen = chosen_scores(recipe)
        scores = ("compression", *(("loss",) if recipe.needs_proxy else ()), *chosen.values())
        provided = _WINDOW + tuple(dict.fromkeys((*scores, *chosen)))
        add("scored", [chosen, seed], ("windows", "tokenizer", "proxy"), _WINDOW, provided)
        windows = "scored"
    if recipe.selection:
        add(
            "selected",
            recipe.selection.keep,
            (windows,),
            ("uncertainty", "window_id"),
            builder.stages[windows].provides,
        )
        windows = "selected"
    add(
        "training_set",
        bool(recipe.difficulty),
        (windows,),
        ("window_id", "tokens"),
        builder.stages[windows].provides,
    )
    how = _section(recipe.training, "max_failures", "keep_checkpoints", "trackers")
    training = [
        {key: value for key, value in how.items() if value is not None},  # what is off makes no other key
        _section(recipe.curriculum),
        _section(recipe.model),
        seed,
    ]
    add("model", training, ("training_set", "windows", "tokenizer"), ("tokens",))
    add("evaluation", "test", ("windows", "model", "tokenizer"), ("tokens", "target_bytes", "split"))
    _check_columns(builder.stages)
    return Plan(recipe, tuple(shards), builder.stages)


def chosen_scores(recipe: Recipe) -> dict[str, str]:
    """Which score becomes `difficulty` and which `uncertainty`, where the recipe asks for them."""
    chosen: dict[str, str] = {}
    if recipe.difficulty:
        chosen["difficulty"] = recipe.difficulty.kind
    if recipe.selection:
        chosen["uncertainty"] = recipe.selection.kind
    return chosen


def _section(section: Any, *leave_out: str) -> Any:
    return section.model_dump(mode="json", exclude=set(leave_out)) if section is not None else None


def _check_columns(stages: dict[str, Stage]) -> None:
    """Every column that a stage requires comes from its first input."""
    for stage in stages.values():
        first = next(iter(stage.inputs.values()), None)
        missing = set(stage.requires) - set(first.provides if first else ())
        assert not missing, (
            f"stage {stage.name} requires {sorted(missing)}, which {first and first.name} lacks"
        )
