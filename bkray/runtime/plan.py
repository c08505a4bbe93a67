"""The plan of a run: its stages, what each depends on, and whether it is already there. No cluster needed.

    documents ─► tokenizer ─► windows ─► scored ─► selected ─► training_set ─► model ─► evaluation, forgetting
        └─► augmented ──────────┘ └─► proxy ─┘                                    held_out_scores ─┘

Between documents and the rest go decontaminated, deduplicated, filtered and nearest (`cleaning.leakage`,
`near`, `quality`, `nearest`), between training_set and model soft_targets (`training.distillation`). Where
the text of the start model's run is there, seen_before looks for held-out documents in it. Stages that a
recipe does not ask for are not in its plan.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bkray.config import Recipe, UserError
from bkray.config.corpus import AnyCorpus, Leakage, MixedCorpus, Quality
from bkray.config.training import PLACEMENT, Training
from bkray.corpus import Shard, list_shards
from bkray.corpus.schema import DOCUMENTS, windows_schema
from bkray.corpus.shard import HELD_OUT, split_named
from bkray.runtime.artifacts import Artifact, key_of
from bkray.runtime.pool import Learnt, Pool, find_learnt, find_pool, models_before

_FORMAT = 5  # part of every key: a change of what the stages write makes new artifacts
_DRAWN_TWICE = (
    2  # of `nearest` to a mixed corpus: what its sources hold out by themselves is left out as well
)
_SYNONYMS = 2  # the same of synonym augmentation alone, part of the key of `augmented` where a recipe has it

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
class Named:
    """The shards of other corpora, which `cleaning` and `tokenizer` name."""

    trusted: tuple[Shard, ...] = ()
    """Of the sample of `quality`, a test split among them."""
    target: tuple[Shard, ...] = ()
    """Of the target of `nearest`."""
    held_out: dict[str, tuple[Shard, ...]] = field(default_factory=dict)
    """With held-out text, of each corpus of `leakage`."""
    vocabulary: tuple[Shard, ...] = ()
    """Of the corpus of `tokenizer`."""

    @classmethod
    def by(cls, recipe: Recipe) -> Named:
        """Raises UserError as `list_shards` does."""
        cleaning, vocabulary = recipe.cleaning, recipe.tokenizer.corpus
        quality, nearest, leakage = cleaning.quality, cleaning.nearest, cleaning.leakage
        return cls(
            _list_trusted(quality) if quality else (),
            _listed(nearest.to, "cleaning.nearest.to") if nearest else (),
            _list_held_out(leakage) if leakage else {},
            _listed(vocabulary, "tokenizer.corpus") if vocabulary else (),
        )


@dataclass(frozen=True)
class Plan:
    recipe: Recipe
    shards: tuple[Shard, ...]
    stages: dict[str, Stage]
    start: Path | None = None
    """The exported model that training starts from; absolute, since workers have folders of their own."""
    pool: Pool | None = None
    """What the start model learnt from, where the recipe names it."""
    learnt: Learnt = field(default_factory=Learnt)
    """The text of the start model's run, of the one that is replayed, and of those before them."""
    named: Named = field(default_factory=Named)

    @property
    def corpus_bytes(self) -> int:
        """An estimate of the text in all shards."""
        return sum(shard.text_bytes for shard in self.shards)


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
    seed = recipe.seed
    exact = _section(recipe.cleaning, "near", "quality", "nearest", "leakage")
    add("documents", [_source(recipe.corpus), exact, seed, _prints(shards)], provides=_DOCUMENT)
    named = Named.by(recipe)
    documents = _clean(builder, recipe, named)
    path = Path(recipe.training.start_from).absolute() if recipe.training.start_from else None
    replay = recipe.training.replay
    learnt = find_learnt(*models_before(recipe.training.start_from, replay.run if replay else None))
    if learnt.documents:
        text = [artifact.manifest["key"] for artifact in learnt.documents]
        add("seen_before", [text, _section(recipe.cleaning.alike)], (documents,), ("doc_id", "text", "split"))
    given = {setting: digests(setting, folder) for setting, folder in recipe.given_models.items()}
    start = given.get("training.start_from", {})
    _make_tokenizer(builder, recipe, given, documents, named)
    if recipe.augmentation:
        kinds = [_section(kind) for kind in recipe.augmentation]
        written = [_SYNONYMS] if any(kind["kind"] == "synonym" for kind in kinds) else []
        add("augmented", [kinds, seed, *written], (documents,), _DOCUMENT, _DOCUMENT)
    add("windows", recipe.window, (documents, "augmented", "tokenizer"), _DOCUMENT, _WINDOW)
    scores = _choose(builder, recipe, given)
    _ask_teachers(builder, recipe, given)
    pool = find_pool(recipe)
    replayed = {"replay": [replay.share, pool.training_set.manifest["key"]]} if replay and pool else {}
    training = [
        _training(recipe.training) | start | replayed,
        _section(recipe.curriculum),
        _section(recipe.model),
        seed,
        *([_section(recipe.sampling)] if recipe.sampling else []),
    ]
    add("model", training, ("training_set", "soft_targets", "windows", "tokenizer"), ("tokens",))
    if scores:
        add("held_out_scores", [*scores, "test"], ("windows", "tokenizer", "proxy"), ("tokens", "split"))
    if pool:
        add("forgetting", [start, pool.windows.manifest["key"]], ("model",))
    add("evaluation", "test", ("windows", "model", "tokenizer"), ("tokens", "target_bytes", "split"))
    _check_columns(builder.stages)
    return Plan(recipe, tuple(shards), builder.stages, path, pool, learnt, named)


def _make_tokenizer(
    builder: _Builder, recipe: Recipe, given: dict[str, dict[str, str]], documents: str, named: Named
) -> None:
    """Add the stage of the tokenizer, which is taken from a model or trained: on `documents` or on others."""
    own: Any = _section(recipe.tokenizer, "corpus")
    if taken := next(iter(recipe.tokenizer_models), None):
        builder.add("tokenizer", {"taken": given[taken]["tokenizer.json"]}, (documents,))
    elif corpus := recipe.tokenizer.corpus:
        read = [_source(corpus), recipe.cleaning.max_chars, _prints(named.vocabulary)]
        drawn = any(shard.carve for shard in named.vocabulary)
        builder.add("tokenizer", [own, *read, list(vocabulary_seeds(recipe)) if drawn else []])
    else:
        builder.add("tokenizer", own, (documents,), ("text", "split"))


def _choose(builder: _Builder, recipe: Recipe, given: dict[str, dict[str, str]]) -> list[Any]:
    """Add the stages from the windows to the training set; returns what the scores depend on, if any."""
    add, seed, windows = builder.add, recipe.seed, "windows"
    if recipe.trains_proxy:
        proxy = recipe.proxy.model_dump(mode="json", exclude={"folder"}) if recipe.proxy else None
        add("proxy", [proxy, seed], ("windows", "tokenizer"), ("tokens", "split"))
    others = ("training.start_from", *recipe.teachers)
    scorers = {setting: files for setting, files in given.items() if setting not in others}
    chosen = chosen_scores(recipe)
    how = [chosen, seed, *_more(scorers, recipe)]
    if chosen:
        columns = dict.fromkeys((*scored_columns(recipe), *chosen))
        provided = _WINDOW + tuple(name for name in columns if name != "token_loss")
        add("scored", how, ("windows", "tokenizer", "proxy"), _WINDOW, provided)
        windows = "scored"
    if recipe.selection:
        provided = builder.stages[windows].provides
        diversity = recipe.selection.diversity
        add(
            "selected",
            [recipe.selection.keep, _section(diversity), seed] if diversity else recipe.selection.keep,
            (windows,),
            ("uncertainty", "window_id", *(["embedding"] if diversity else [])),
            tuple(name for name in provided if name != "embedding"),
        )
        windows = "selected"
    add(
        "training_set",
        bool(recipe.difficulty),
        (windows,),
        ("window_id", "tokens"),
        builder.stages[windows].provides,
    )
    return how if chosen else []


def _ask_teachers(builder: _Builder, recipe: Recipe, given: dict[str, dict[str, str]]) -> None:
    """Add the stage of the soft targets, where there are teachers."""
    if recipe.training.distillation:
        teachers = [given[setting]["model.safetensors"] for setting in recipe.teachers]
        order = ("difficulty", "window_id") if recipe.difficulty else ("window_id",)
        builder.add(
            "soft_targets",
            [teachers, recipe.training.distillation.top_k],
            ("training_set", "tokenizer"),
            (*order, "tokens"),
            (*order, "soft_ids", "soft_log_probs"),
        )


def _clean(builder: _Builder, recipe: Recipe, named: Named) -> str:
    """Add the stages that take documents out; returns the name of the last one."""
    cleaning, documents = recipe.cleaning, "documents"
    asked: dict[str, Any] = {}
    if leakage := cleaning.leakage:
        corpora = {
            name: corpus_identity(corpus, named.held_out[name])
            for name, corpus in leakage.held_out_of.items()
        }
        seeds = drawn_seeds(recipe)
        asked["decontaminated"] = [corpora, leakage.overlap, seeds, _section(cleaning.alike)]
    if cleaning.near:
        asked["deduplicated"] = _section(cleaning.near)
    if quality := cleaning.quality:
        sample = [_source(quality.sample), cleaning.max_chars, _prints(learned_from(named.trusted))]
        asked["filtered"] = [quality.lose, *sample]
    if nearest := cleaning.nearest:
        read = [_source(nearest.to), cleaning.max_chars, _prints(named.target)]
        mixed = isinstance(nearest.to, MixedCorpus) and any(shard.carve for shard in named.target)
        twice = [_DRAWN_TWICE] if mixed else []
        asked["nearest"] = [nearest.keep, *read, list(drawn_seeds(recipe)), *twice]
    for name, config in asked.items():
        builder.add(name, config, (documents,), _DOCUMENT, _DOCUMENT)
        documents = name
    return documents


def _listed(corpus: AnyCorpus, setting: str) -> tuple[Shard, ...]:
    try:
        return tuple(list_shards(corpus))
    except UserError as error:
        raise UserError(f"{setting}: {error}") from error


def _list_trusted(quality: Quality) -> tuple[Shard, ...]:
    shards = _listed(quality.sample, "cleaning.quality.sample")
    if not learned_from(shards):
        raise UserError(
            f"cleaning.quality.sample: it is a test split alone, {shards[0].source}, from which nothing is "
            "learned: name its training or validation split, or other text"
        )
    return shards


def learned_from(trusted: Sequence[Shard]) -> tuple[Shard, ...]:
    """The shards of a trusted sample without those whose name says that they are a test split."""
    return tuple(shard for shard in trusted if split_named(shard.source) != "test")


def drawn_seeds(recipe: Recipe) -> tuple[int, ...]:
    """The seeds by which other corpora that the recipe names draw their splits."""
    leakage = recipe.cleaning.leakage
    return (leakage.seeds if leakage else ()) or (recipe.seed,)


def vocabulary_seeds(recipe: Recipe) -> tuple[int, ...]:
    """The seeds that draw splits of the corpus of `tokenizer`, which may have the recipe's own text in it."""
    return tuple(dict.fromkeys((recipe.seed, *drawn_seeds(recipe))))


def _list_held_out(leakage: Leakage) -> dict[str, tuple[Shard, ...]]:
    found = {}
    for name, corpus in leakage.held_out_of.items():
        shards = _listed(corpus, f"cleaning.leakage.held_out_of.{name}")
        found[name] = tuple(shard for shard in shards if shard.carve or shard.split in HELD_OUT)
    if leakage.seeds and not any(shard.carve for shards in found.values() for shard in shards):
        raise UserError(
            f"cleaning.leakage.seeds {list(leakage.seeds)} has no effect: the corpora of held_out_of bring "
            "their own splits: remove it"
        )
    return found


def _prints(shards: Sequence[Shard]) -> list[list[str | None]]:
    return [
        [f"{shard.member}/{shard.source}" if shard.member else shard.source, shard.split, shard.fingerprint]
        for shard in shards
    ]


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


def scored_columns(recipe: Recipe) -> tuple[str, ...]:
    """The scores of every training window, in their order; `chosen_scores` adds copies."""
    always = ("compression", "loss") if recipe.needs_proxy else ("compression",)
    embedding = ("embedding",) if recipe.selection and recipe.selection.diversity else ()
    return tuple(dict.fromkeys((*always, *chosen_scores(recipe).values(), *embedding)))


def _more(scorers: dict[str, dict[str, str]], recipe: Recipe) -> list[Any]:
    """What scores depend on beyond their names, only where it is used, so that new keys change no hash."""
    selection = recipe.selection
    more: dict[str, Any] = dict(scorers)
    if selection and selection.kind == "variation_ratio":
        more["variation_ratio"] = [selection.passes, selection.dropout]
    if selection and selection.diversity:
        more["embedding"] = True
    return [more] if more else []


def _training(training: Training) -> Any:
    """What the weights depend on: not placement, and not what is off, so that new keys change no hash."""
    defaults = {key: Training.model_fields[key].default for key in PLACEMENT}
    left_out = {
        "max_failures",
        "keep_checkpoints",
        "trackers",
        "accumulate",
        "gpu_share",
        "profile",
        "start_from",
        "replay",
    }
    named = ("gradient_as_bucket_view", "start_vocabulary")
    left_out |= {key for key in named if not training.changed(key)}
    kept = _section(training.model_copy(update=defaults), *left_out)
    if training.distillation:  # the rest is in the key of the soft targets
        kept["distillation"] = _section(training.distillation, "teachers", "top_k")
    return {key: value for key, value in kept.items() if value is not None}


def digests(setting: str, folder: str) -> dict[str, str]:
    """What a run takes from the exported model that `setting` names, by file."""
    try:
        return {
            name: hashlib.sha256((Path(folder) / name).read_bytes()).hexdigest()
            for name in ("model.safetensors", "tokenizer.json")
        }
    except OSError as error:
        raise UserError(
            f"{setting} {folder} holds no exported model ({error}): name the folder model/ of a run"
        ) from None


def corpus_identity(corpus: AnyCorpus, shards: Sequence[Shard]) -> list[Any]:
    """What the corpus with these shards is, wherever it lies."""
    return [_source(corpus), _prints(shards)]


def _source(corpus: AnyCorpus) -> Any:
    """A corpus without its paths: where text lies does not matter."""
    if isinstance(corpus, MixedCorpus):
        return [_source(source) for source in corpus.sources]
    return _section(corpus, "path")


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
