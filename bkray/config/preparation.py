"""What the data stages do to the windows: augmentation, difficulty, selection, curriculum."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bkray.config.section import Section, Share

Pacing = Literal["linear", "exponential", "root", "step"]


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


class Synonym(WordAugmentation):
    """Replacement by WordNet synonyms (EDA, arXiv 1901.11196); `bkray fetch wordnet` brings the data."""

    kind: Literal["synonym"]
    probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """That a word is drawn; a drawn word without a fitting synonym stays."""
    max_share: Share = 0.3
    """Share of a document's words that are replaced at most."""


Augmentation = Annotated[Deletion | Swap | Synonym, Field(discriminator="kind")]


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
