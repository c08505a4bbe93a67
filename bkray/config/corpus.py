"""The recipe's `corpus`, `cleaning` and `tokenizer`: where the text comes from and how it becomes tokens."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from bkray.config.patterns import checked_pattern
from bkray.config.section import Count, Section


class Corpus(Section):
    """What every source shares: the shares of held-out text, where the source has no splits of its own."""

    validation: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    test: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05

    @model_validator(mode="after")
    def _enough_left(self) -> Self:
        if self.validation + self.test > 0.5:
            raise ValueError(
                f"validation {self.validation:g} and test {self.test:g} together leave less than half for "
                "training: lower them"
            )
        return self


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
    return None if pattern is None else checked_pattern(pattern)


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


def _shape_of_rows(given: object) -> str:
    return "~splits" if isinstance(given, dict) else "~number"


Rows = Annotated[
    Annotated[Count, Tag("~number")] | Annotated[dict[str, Count], Tag("~splits")],
    Discriminator(_shape_of_rows),
]


class HubCorpus(Corpus):
    """A data set of the Hugging Face hub, by `datasets` name and configuration."""

    kind: Literal["hub"]
    name: str
    config: str | None = None
    revision: str | None = None
    text_field: str = "text"
    rows: Rows | None = None
    """Of every split the first so many, or of those named as many as each says and of no others, read as a
    stream, so that no more are downloaded; null: all."""
    document_start: str | None = None
    """Regular expression: a row that it matches opens a new document of several rows."""

    _pattern = field_validator("document_start")(_checked_pattern)

    def rows_of(self, split: str) -> int | None:
        """How many of a split's rows are read; null: all."""
        return self.rows[split] if isinstance(self.rows, dict) else self.rows


AnySource = DocstringsCorpus | TextCorpus | JsonlCorpus | ParquetCorpus | HubCorpus


class MixedCorpus(Section):
    """Several sources as one corpus, each with its own splits or shares of held-out text."""

    kind: Literal["mixed"]
    sources: Annotated[tuple[Annotated[AnySource, Field(discriminator="kind")], ...], Field(min_length=2)]


AnyCorpus = Annotated[AnySource | MixedCorpus, Field(discriminator="kind")]


class NearDuplicates(Section):
    """Training documents that share most of their word n-grams with another document go."""

    threshold: Annotated[float, Field(ge=0.03, le=1.0)] = 0.6
    """Jaccard similarity of the two sets of n-grams from which on the copy goes; 128 MinHash values do not
    find 97 % of the pairs of a lower one."""
    ngram: Count = 2
    """Words an n-gram: with 1 their order does not count."""


class Quality(Section):
    """Training documents that are less like a trusted sample than nearly all of the sample go."""

    sample: AnyCorpus
    """Where the trusted sample comes from, a source like `corpus`: all of it but for its own test split."""
    lose: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.02
    """Share of the sample's own documents that the threshold would lose."""

    @field_validator("sample")
    @classmethod
    def _no_split(cls, sample: AnyCorpus) -> AnyCorpus:
        for source in sample.sources if isinstance(sample, MixedCorpus) else [sample]:
            for split in ("validation", "test"):
                if source.changed(split):
                    raise ValueError(
                        f"{split} has no effect: no split is drawn from the sample, it is taken whole but "
                        "for a test split of its own: remove it"
                    )
        return sample


class Nearest(Section):
    """Of the training documents the share stays whose words are most like those of a target."""

    to: AnyCorpus
    """The target, a section like `corpus` with the shares of its own runs: its training text is read."""
    keep: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Share of the documents that stays."""


class Leakage(Section):
    """Training documents that give away what other corpora hold out for validation and test go."""

    held_out_of: Annotated[dict[str, AnyCorpus], Field(min_length=1)]
    """Corpora by a name of your choice: sections like `corpus`, with the same shares as in their own runs."""
    overlap: Annotated[int, Field(ge=2)] | None = 13
    """Words in a row that a document may not share with a held-out one (arXiv 2005.14165); null: any may."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = ()
    """Seeds of the runs on those corpora, which draw their splits; none: this recipe's seed."""


class Cleaning(Section):
    exact: bool = True
    """Remove exact duplicates over all splits; the copy with the lowest id stays."""
    near: NearDuplicates | None = None
    quality: Quality | None = None
    nearest: Nearest | None = None
    leakage: Leakage | None = None
    max_chars: Annotated[int, Field(ge=1)] = 1_000_000
    """A longer document goes to the rejects."""
    max_rejects: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Share of rejected documents above which the stage stops."""

    @property
    def alike(self) -> NearDuplicates:
        """What counts as a near-duplicate: as `near` says, or by its defaults where `leakage` alone asks."""
        return self.near or NearDuplicates()


class Tokenizer(Section):
    vocab_size: Annotated[int, Field(ge=257, le=65_536)] = 4096
    corpus: AnyCorpus | None = None
    """Whose training documents it is trained on as they are, a section like `corpus` with the shares of its
    own runs; null: on those of the recipe's corpus. Where splits are drawn, no document counts that the seed
    of the recipe or one of `cleaning.leakage.seeds` holds out."""

    @field_validator("corpus", mode="before")
    @classmethod
    def _no_name(cls, given: object) -> object:
        if isinstance(given, str):
            raise ValueError(
                f"{given!r} is no section like corpus; in `bkray transfer` alone the name of the last phase "
                "stands for its corpus, in phases before it"
            )
        return given
