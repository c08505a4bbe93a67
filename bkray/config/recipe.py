"""The recipe: everything that a run depends on, as frozen pydantic models.

    YAML file ─► load_recipe(path, overrides) ─► Recipe ─► every stage takes its own section

Unknown keys are refused (`loading.py` adds suggestions), and so are keys that would have no effect.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from bkray.config.model import GRUModel, ImportModel, Model, ResNetBKModel
from bkray.config.schedule import OneCycle, PlainSchedule, Schedule
from bkray.config.section import Section, Share

Pacing = Literal["linear", "exponential", "root", "step"]


# --- corpus --------------------------------------------------------------------------------------


class Corpus(Section):
    """What every source shares: the shares of held-out text, where the source has no splits of its own."""

    validation: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    test: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05


class DocstringsCorpus(Corpus):
    """The English docstrings of installed Python packages, read with `ast` and never imported."""

    kind: Literal["docstrings"]
    packages: tuple[str, ...] = ("torch", "sympy", "numpy", "pandas", "networkx", "ray", "nltk")


class FileCorpus(Corpus):
    """Files, folders or globs (.gz and .zst too), local or at any URL that fsspec reads."""

    path: str | tuple[str, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path


def _checked_pattern(pattern: str | None) -> str | None:
    if pattern is not None:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
    return pattern


class TextCorpus(FileCorpus):
    """Plain text. A document is a file, a paragraph (blank line between), a line, or starts at a pattern."""

    kind: Literal["text"]
    document: Literal["file", "paragraph", "line"] = "paragraph"
    document_start: str | None = None
    """Regular expression: a line that it matches opens a new document (replaces `document`)."""

    _pattern = field_validator("document_start")(_checked_pattern)

    @model_validator(mode="after")
    def _no_inert_key(self) -> TextCorpus:
        if self.document_start is not None and self.changed("document"):
            raise ValueError("document has no effect beside document_start: remove one of the two")
        return self


class JsonlCorpus(FileCorpus):
    """JSON Lines: one object a line, its text under `text_field`."""

    kind: Literal["jsonl"]
    text_field: str = "text"


class ParquetCorpus(FileCorpus):
    """Parquet tables with the text in column `text_field`."""

    kind: Literal["parquet"]
    text_field: str = "text"


class HubCorpus(Corpus):
    """A data set of the Hugging Face hub, by `datasets` name and configuration."""

    kind: Literal["hub"]
    name: str
    config: str | None = None
    revision: str | None = None
    text_field: str = "text"
    document_start: str | None = None
    """Regular expression: a row that it matches opens a new document of several rows."""

    _pattern = field_validator("document_start")(_checked_pattern)


AnyCorpus = Annotated[
    DocstringsCorpus | TextCorpus | JsonlCorpus | ParquetCorpus | HubCorpus, Field(discriminator="kind")
]


class Cleaning(Section):
    exact: bool = True
    """Remove exact duplicates over all splits; the copy with the lowest id stays."""
    max_chars: Annotated[int, Field(ge=1)] = 1_000_000
    """A longer document goes to the rejects."""
    max_rejects: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Share of rejected documents above which the stage stops."""


class Tokenizer(Section):
    vocab_size: Annotated[int, Field(ge=257, le=65_536)] = 4096


# --- techniques ----------------------------------------------------------------------------------


class WordAugmentation(Section):
    """What augmentations share."""

    share: Share = 1.0
    """Share of the training documents that get an augmented copy; 1 makes exactly one for each."""


class Deletion(WordAugmentation):
    """Random deletion of words (EDA, arXiv 1901.11196)."""

    kind: Literal["deletion"]
    probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1


class Swap(WordAugmentation):
    """Random swap of neighbouring words (EDA, arXiv 1901.11196)."""

    kind: Literal["swap"]
    probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1


Augmentation = Annotated[Deletion | Swap, Field(discriminator="kind")]


class Difficulty(Section):
    """The score that orders the training windows from easy to hard."""

    kind: Literal["compression", "rarity", "loss"]

    @property
    def needs_proxy(self) -> bool:
        return self.kind == "loss"


class Selection(Section):
    """The share of the training windows kept: the most uncertain ones, or a random control."""

    kind: Literal["entropy", "margin", "least_confidence", "random"]
    keep: Share = 0.8

    @property
    def needs_proxy(self) -> bool:
        return self.kind != "random"


class Proxy(Section):
    """The small model that scores difficulty and uncertainty; its cost is charged to the ledger."""

    d_model: Annotated[int, Field(ge=16)] = 64
    n_layers: Annotated[int, Field(ge=1)] = 2
    tokens: Annotated[int, Field(ge=1)] = 400_000
    lr: Annotated[float, Field(gt=0.0)] = 1e-2


class Adjuster(Section):
    """`DifficultyAdjuster`: on a plateau of the validation loss the pacing moves ahead."""

    patience: Annotated[int, Field(ge=1)] = 2
    acceleration: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    min_delta: Annotated[float, Field(ge=0.0)] = 0.005


class Curriculum(Section):
    pacing: Pacing = "linear"
    start: Share = 0.3
    """Share of the data that is available at the first step."""
    adjuster: Adjuster | None = None


# --- training ------------------------------------------------------------------------------------


class Training(Section):
    tokens: Annotated[int, Field(ge=1)] = 2_000_000
    """Target tokens seen in all."""
    batch_tokens: Annotated[int, Field(ge=1)] = 4096
    """Target tokens of a global batch, whatever the number of workers."""
    optimizer: Literal["adamw", "muon"] = "muon"
    lr: Annotated[float, Field(gt=0.0)] = 3e-3
    schedule: Schedule = PlainSchedule(kind="linear")
    """What follows the warm-up."""
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """Share of the steps in which the rate rises to `lr`."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    clip: Annotated[float, Field(gt=0.0)] = 1.0
    """Largest norm of the gradient."""
    workers: Annotated[int, Field(ge=1)] = 2
    parallel: Literal["ddp"] = "ddp"
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the forward pass; weights, optimizer, losses and BK's operators stay in float32."""
    activation_checkpointing: bool = False
    """Keep only the inputs of the blocks and compute the rest again for the backward pass."""
    compile: bool = False
    """torch.compile of the training pass."""
    log_every: Annotated[int, Field(ge=1)] = 10
    """Steps between two lines of metrics.jsonl."""
    eval_every: Annotated[int, Field(ge=1)] = 50
    """Steps between two looks at the validation split."""
    eval_windows: Annotated[int, Field(ge=1)] = 128
    checkpoint_every: Annotated[int, Field(ge=1)] = 50
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    max_failures: Annotated[int, Field(ge=0)] = 2
    """How often a lost worker is replaced before the run gives up."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Where the lines of metrics.jsonl go as well."""

    @model_validator(mode="after")
    def _rise(self) -> Training:
        if isinstance(self.schedule, OneCycle) and not self.warmup:
            raise ValueError("schedule one_cycle rises in training.warmup of the steps: set it above 0")
        return self

    @field_validator("trackers")
    @classmethod
    def _each_once(cls, trackers: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({kind for kind in trackers if trackers.count(kind) > 1}):
            raise ValueError(f"{', '.join(twice)} is named more than once")
        return trackers


class Samples(Section):
    """The text generated for the report."""

    prompts: tuple[str, ...] = ("Returns the",)
    tokens: Annotated[int, Field(ge=1)] = 80
    temperature: Annotated[float, Field(gt=0.0)] = 0.8


class Recipe(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    corpus: AnyCorpus
    cleaning: Cleaning = Cleaning()
    tokenizer: Tokenizer = Tokenizer()
    window: Annotated[int, Field(ge=2)] = 256
    augmentation: tuple[Augmentation, ...] = ()
    difficulty: Difficulty | None = None
    selection: Selection | None = None
    proxy: Proxy | None = None
    curriculum: Curriculum | None = None
    model: Model = ResNetBKModel(kind="resnet_bk")
    training: Training = Training()
    samples: Samples | None = Samples()

    @property
    def batch_windows(self) -> int:
        """Windows of a global batch."""
        return self.training.batch_tokens // self.window

    @property
    def steps(self) -> int:
        """Optimizer steps: as many as it takes to see `training.tokens`."""
        return -(-self.training.tokens // (self.batch_windows * self.window))

    @property
    def needs_proxy(self) -> bool:
        return any(part is not None and part.needs_proxy for part in (self.difficulty, self.selection))

    @model_validator(mode="before")
    @classmethod
    def _imply(cls, values: Any) -> Any:
        """Fill in what a curriculum or a model score cannot do without."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        if values.get("curriculum") is not None and values.get("difficulty") is None:
            values["difficulty"] = {"kind": "compression"}
        kinds = {
            part.get("kind")
            for key in ("difficulty", "selection")
            if isinstance(part := values.get(key), dict)
        }
        if kinds & {"loss", "entropy", "margin", "least_confidence"} and values.get("proxy") is None:
            values["proxy"] = {}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        faults = []
        if self.difficulty and not self.curriculum:
            faults.append("difficulty has no effect without a curriculum: add one or remove difficulty")
        if self.proxy and not self.needs_proxy:
            faults.append(
                "proxy has no effect: neither difficulty (loss) nor selection (entropy, margin, "
                "least_confidence) asks for a model's score"
            )
        if self.training.batch_tokens % self.window:
            faults.append(
                f"training.batch_tokens {self.training.batch_tokens} must be a multiple of "
                f"window {self.window}"
            )
        elif self.batch_windows % self.training.workers:
            faults.append(
                f"training.batch_tokens {self.training.batch_tokens} is {self.batch_windows} windows of "
                f"{self.window}, which training.workers {self.training.workers} cannot share evenly"
            )
        faults += self._unsuitable_hardware()
        if isinstance(self.corpus, Corpus) and self.corpus.validation + self.corpus.test > 0.5:
            faults.append("corpus.validation and corpus.test together leave less than half for training")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _unsuitable_hardware(self) -> list[str]:
        faults = []
        if self.training.activation_checkpointing and isinstance(self.model, ImportModel):
            faults.append(
                "training.activation_checkpointing has no effect on model kind import, whose blocks are not "
                "known: remove it, and use torch.utils.checkpoint in the module"
            )
        if self.training.compile and isinstance(self.model, GRUModel):
            faults.append(
                "training.compile cannot take model kind gru, whose recurrence torch leaves uncompiled: "
                "remove it"
            )
        if self.training.compile and isinstance(self.model, ResNetBKModel) and self.model.halting:
            faults.append(
                "training.compile cannot take model.halting, whose shapes depend on the tokens: remove one"
            )
        return faults
