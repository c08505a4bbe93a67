"""What the data stages do to the windows: augmentation, difficulty, selection, curriculum."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from bkray.config.section import Rate, Section, Share, named

Pacing = Literal["linear", "exponential", "root", "step"]
ModeName = Annotated[str, Field(pattern=r"^[A-Za-z_]+-[A-Za-z_]+$")]


class Copies(Section):
    """What augmentations share."""

    share: Share = 1.0
    """Share of the training documents that get an augmented copy; 1 makes exactly one for each."""


class Deletion(Copies):
    """Random deletion of words (EDA, arXiv 1901.11196)."""

    kind: Literal["deletion"]
    probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    min_words: Annotated[int, Field(ge=1)] = 1
    """Words that are left at least; a document that has no more stays as it is."""


class Swap(Copies):
    """Random swap of neighbouring words (EDA, arXiv 1901.11196)."""

    kind: Literal["swap"]
    probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    min_words: Annotated[int, Field(ge=1)] = 1
    """A document of fewer words stays as it is."""


class Synonym(Copies):
    """Replacement by WordNet synonyms (EDA, arXiv 1901.11196); `bkray fetch wordnet` brings the data."""

    kind: Literal["synonym"]
    probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """That a word is drawn; a drawn word without a fitting synonym stays."""
    max_share: Share = 0.3
    """Share of a document's words that are replaced at most."""


class ApertiumTranslator(Section):
    """Rules and dictionaries; the modes must be installed, eng-spa by Debian's package apertium-eng-spa."""

    kind: Literal["apertium"]
    forth: ModeName = "eng-spa"
    back: ModeName = "spa-eng"

    @model_validator(mode="after")
    def _returning(self) -> ApertiumTranslator:
        (source, target), (begun, ended) = (_languages(mode) for mode in (self.forth, self.back))
        if (begun, ended) != (target, source):
            raise ValueError(
                f"back {self.back} does not lead back from forth {self.forth}: set it to {target}-{source}, "
                "or forth to its opposite"
            )
        return self


def _languages(mode: str) -> list[str]:
    """Source and target without the variants that `_` sets off: spa and cat of spa-cat_valencia."""
    return [language.split("_")[0] for language in mode.split("-")]


class HuggingFaceTranslator(Section):
    """Two sequence-to-sequence models for `transformers`: folders, or names of the hub in its local cache."""

    kind: Literal["hugging_face"]
    forth: str = "Helsinki-NLP/opus-mt-en-es"
    back: str = "Helsinki-NLP/opus-mt-es-en"


Translator = Annotated[
    ApertiumTranslator | HuggingFaceTranslator, BeforeValidator(named), Field(discriminator="kind")
]


class BackTranslation(Copies):
    """The document in another language and back (arXiv 1511.06709)."""

    kind: Literal["back_translation"]
    translator: Translator = ApertiumTranslator(kind="apertium")
    lowest: Annotated[float, Field(ge=0.0, le=1.0)] = 0.4
    """chrF of copy and original (1 is equal) below which a copy is dropped as a wreck."""
    highest: Annotated[float, Field(ge=0.0, le=1.0)] = 0.95
    """chrF above which a copy is dropped because hardly anything has changed."""

    @model_validator(mode="after")
    def _in_order(self) -> BackTranslation:
        if self.lowest >= self.highest:
            raise ValueError(f"lowest {self.lowest} must be below highest {self.highest}")
        return self


Augmentation = Annotated[Deletion | Swap | Synonym | BackTranslation, Field(discriminator="kind")]


MODEL_SCORES = frozenset(
    {"loss", "perplexity", "entropy", "margin", "least_confidence", "variation_ratio", "reducible"}
)
"""Scores of a window that a model gives, here or elsewhere in the recipe."""


class Difficulty(Section):
    """The score that orders the training windows from easy to hard."""

    kind: Literal["compression", "rarity", "sentence_length", "loss", "perplexity", "entropy", "reducible"]
    reference: str | None = None
    """Of reducible: folder of an exported model; its loss is taken off the scoring model's."""

    @property
    def needs_proxy(self) -> bool:
        return self.kind in MODEL_SCORES

    @model_validator(mode="after")
    def _referred(self) -> Difficulty:
        if self.kind == "reducible" and self.reference is None:
            raise ValueError(
                "kind reducible takes the loss of a reference model off: set difficulty.reference to the "
                "folder model/ of a run"
            )
        if self.kind != "reducible" and self.reference is not None:
            raise ValueError(f"difficulty.reference has no effect on kind {self.kind}: remove it")
        return self


class Diversity(Section):
    """The most uncertain of every cluster, as equally many of each as there are (arXiv 2107.14263)."""

    clusters: Annotated[int, Field(ge=2, le=1024)] = 64
    """Of the mean final states of the scoring model; the driver holds a histogram of 0.5 MB each."""
    sample: Annotated[int, Field(ge=2)] = 8192
    """Windows that the clusters are made from."""

    @model_validator(mode="after")
    def _enough(self) -> Diversity:
        if self.clusters > self.sample:
            raise ValueError(
                f"clusters {self.clusters} cannot be made from sample {self.sample}: raise it or lower them"
            )
        return self


class Selection(Section):
    """The share of the training windows kept: the most uncertain ones, or a random control."""

    kind: Literal["entropy", "margin", "least_confidence", "variation_ratio", "random"]
    keep: Share = 0.8
    passes: Annotated[int, Field(ge=2)] = 10
    """Of variation_ratio: thinned copies of the scoring model's final states."""
    dropout: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Of variation_ratio: the share of the states that each copy lacks."""
    diversity: Diversity | None = None

    @property
    def needs_proxy(self) -> bool:
        return self.kind != "random" or self.diversity is not None

    @model_validator(mode="after")
    def _effective(self) -> Selection:
        if self.kind != "variation_ratio":
            for key in ("passes", "dropout"):
                if self.changed(key):
                    raise ValueError(f"selection.{key} has no effect on kind {self.kind}: remove it")
        if self.keep == 1.0:
            raise ValueError("keep 1 selects nothing, all windows stay: remove the section")
        return self


class Sampling(Section):
    """Passes that draw only a share of the available windows, those of great weight more often."""

    weight: Literal["compression", "rarity", "loss", "entropy", "least_confidence"]
    """The score that column `weight` holds."""
    share: Share = 0.5
    """Share of the available windows that a pass draws, each once; with 1 only the order changes."""
    start: float = 1.0
    """Power of the weight at the first step; 0 is no preference."""
    end: float = 1.0
    """Power at the last step; between the two it moves straight."""

    @property
    def needs_proxy(self) -> bool:
        return self.weight in MODEL_SCORES

    @model_validator(mode="after")
    def _effective(self) -> Sampling:
        if self.share == 1.0 and self.start == self.end == 0.0:
            raise ValueError("share 1 with start 0 and end 0 is plain shuffling: remove it")
        return self


class Proxy(Section):
    """The model that scores difficulty and uncertainty: a small one, trained for it, or a given one."""

    d_model: Annotated[int, Field(ge=16)] = 64
    n_layers: Annotated[int, Field(ge=1)] = 2
    tokens: Annotated[int, Field(ge=1)] = 400_000
    lr: Rate = 1e-2
    folder: str | None = None
    """Folder of an exported model that scores in the place of a small one; its tokenizer is taken."""

    @model_validator(mode="after")
    def _given(self) -> Proxy:
        if self.folder is not None:
            inert = ", ".join(
                f"proxy.{key}" for key in ("d_model", "n_layers", "tokens", "lr") if self.changed(key)
            )
            if inert:
                raise ValueError(f"{inert}: no effect beside proxy.folder, which is trained: remove one")
        return self


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

    @model_validator(mode="after")
    def _effective(self) -> Curriculum:
        if self.start == 1.0:
            raise ValueError(
                "start 1 is plain shuffling, all windows are there from the first step: remove it"
            )
        return self
