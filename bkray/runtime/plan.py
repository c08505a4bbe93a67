"""The plan of a run: its stages, what each depends on, and whether it is already there. No cluster needed.

    documents ─► tokenizer ─► windows ─► scored ─► selected ─► training_set ─► model ─► evaluation
        └─► augmented ──────────┘ └─► proxy ─┘

Between documents and the rest go deduplicated and filtered (`cleaning.near`, `cleaning.quality`).
Stages that a recipe does not ask for are not in its plan.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bkray.config import Recipe, UserError
from bkray.config.corpus import AnyCorpus
from bkray.config.training import PLACEMENT, Training
from bkray.corpus import Shard, list_shards
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
    start: Path | None = None
    """The exported model that training starts from; absolute, since workers have folders of their own."""
    trusted: tuple[Shard, ...] = ()
    """The shards of the sample that `cleaning.quality` trusts."""

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
    documents, windows = "documents", "windows"
    cleaning = recipe.cleaning
    add(
        "documents",
        [_section(recipe.corpus, "path"), _section(cleaning, "near", "quality"), seed, _prints(shards)],
        provides=_DOCUMENT,
    )
    if cleaning.near:
        add("deduplicated", _section(cleaning.near), (documents,), _DOCUMENT, _DOCUMENT)
        documents = "deduplicated"
    trusted: list[Shard] = []
    if cleaning.quality:
        trusted = list_sample(cleaning.quality.sample)
        sample = [_section(cleaning.quality.sample, "path"), cleaning.max_chars, _prints(trusted)]
        add("filtered", [cleaning.quality.lose, *sample], (documents,), _DOCUMENT, _DOCUMENT)
        documents = "filtered"
    start = digests(recipe.training.start_from)
    vocabulary = {"taken": start["tokenizer.json"]} if start else _section(recipe.tokenizer)
    add("tokenizer", vocabulary, (documents,), ("text", "split"))
    if recipe.augmentation:
        kinds = [_section(kind) for kind in recipe.augmentation]
        add("augmented", [kinds, seed], (documents,), _DOCUMENT, _DOCUMENT)
    add("windows", recipe.window, (documents, "augmented", "tokenizer"), _DOCUMENT, _WINDOW)
    if recipe.needs_proxy:
        add("proxy", [proxy, seed], ("windows", "tokenizer"), ("tokens", "split"))
    if chosen_scores(recipe):
        chosen = chosen_scores(recipe)
        scores = ("compression", *(("loss",) if recipe.needs_proxy else ()), *chosen.values())
        provided = _WINDOW + tuple(name for name in dict.fromkeys((*scores, *chosen)) if name != "token_loss")
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
    training = [
        _training(recipe.training) | start,
        _section(recipe.curriculum),
        _section(recipe.model),
        seed,
        *([_section(recipe.sampling)] if recipe.sampling else []),
    ]
    add("model", training, ("training_set", "windows", "tokenizer"), ("tokens",))
    add("evaluation", "test", ("windows", "model", "tokenizer"), ("tokens", "target_bytes", "split"))
    _check_columns(builder.stages)
    path = Path(recipe.training.start_from).absolute() if recipe.training.start_from else None
    return Plan(recipe, tuple(shards), builder.stages, path, tuple(trusted))


def list_sample(sample: AnyCorpus) -> list[Shard]:
    """The shards of a trusted sample; raises UserError as `list_shards` does."""
    try:
        return list_shards(sample)
    except UserError as error:
        raise UserError(f"cleaning.quality.sample: {error}") from error


def _prints(shards: Sequence[Shard]) -> list[list[str | None]]:
    return [[shard.source, shard.split, shard.fingerprint] for shard in shards]


def chosen_scores(recipe: Recipe) -> dict[str, str]:
    """Which score becomes `difficulty`, `uncertainty`, `weight` and `reference_loss`, where asked for."""
    chosen: dict[str, str] = {}
    if recipe.difficulty:
        chosen["difficulty"] = recipe.difficulty.kind
    if recipe.selection:
        chosen["uncertainty"] = recipe.selection.kind
    if recipe.training.token_selection and recipe.training.token_selection.needs_proxy:
        chosen["reference_loss"] = "token_loss"
    if recipe.sampling:
        chosen["weight"] = recipe.sampling.weight
    return chosen


def _training(training: Training) -> Any:
    """What the weights depend on: not placement, and not what is off, so that new keys change no hash."""
    defaults = {key: Training.model_fields[key].default for key in PLACEMENT}
    left_out = {"max_failures", "keep_checkpoints", "trackers", "accumulate", "profile", "start_from"}
    if not training.changed("gradient_as_bucket_view"):
        left_out.add("gradient_as_bucket_view")
    kept = _section(training.model_copy(update=defaults), *left_out)
    return {key: value for key, value in kept.items() if value is not None}


def digests(start_from: str | None) -> dict[str, str]:
    """What a run takes from the model that it starts from, by file; empty where it starts from none."""
    if start_from is None:
        return {}
    try:
        return {
            name: hashlib.sha256((Path(start_from) / name).read_bytes()).hexdigest()
            for name in ("model.safetensors", "tokenizer.json")
        }
    except OSError as error:
        raise UserError(
            f"training.start_from {start_from} holds no exported model ({error}): name the folder "
            "model/ of a run"
        ) from None


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
