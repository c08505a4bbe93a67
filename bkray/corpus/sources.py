"""From a recipe's corpus section to tables of documents.

    list_shards (driver) ─► Shard ─► read_shard (any worker) ─► DOCUMENTS, REJECTS of about 1,000 rows

Ids depend on source and ordinal alone, in a mixed corpus on the position of the source in its list as well;
splits on the seed and what must stay together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, assert_never

import pyarrow as pa

from bkray.config import UserError
from bkray.config.corpus import (
    AnyCorpus,
    AnySource,
    Cleaning,
    DocstringsCorpus,
    HubCorpus,
    JsonlCorpus,
    MixedCorpus,
    ParquetCorpus,
    TextCorpus,
)
from bkray.corpus.columns import read_parquet
from bkray.corpus.docstrings import list_packages, read_docstrings
from bkray.corpus.files import list_files
from bkray.corpus.hub import list_hub, read_hub
from bkray.corpus.lines import read_jsonl, read_text
from bkray.corpus.schema import DOCUMENTS, REJECTS, stable_id
from bkray.corpus.shard import HELD_OUT, Fault, Record, Shard, not_utf8, shown, split_of, too_long

BATCH_ROWS = 1000
BATCH_CHARS = 16_000_000
_SURROGATE = re.compile("[\ud800-\udfff]")


def list_shards(corpus: AnyCorpus) -> list[Shard]:
    """The shards of a corpus, sorted; reads names and sizes, no text.

    Raises UserError for a path, package or data set that is not there, not readable or empty, and for a share
    of held-out text that the recipe changes although the corpus brings that split itself.
    """
    if isinstance(corpus, MixedCorpus):
        return [shard for number in range(len(corpus.sources)) for shard in _list_member(corpus, number)]
    shards = _listed(corpus)
    for split in HELD_OUT:
        share = getattr(corpus, split)
        carved = any(split in shard.carve for shard in shards)
        if share != type(corpus).model_fields[split].default and not carved:
            raise UserError(
                f"corpus.{split} {share:g} has no effect: the corpus brings a {split} split of its own; "
                "remove the key"
            )
    return shards


def _list_member(corpus: MixedCorpus, number: int) -> list[Shard]:
    try:
        return [replace(shard, member=number) for shard in list_shards(corpus.sources[number])]
    except UserError as error:
        raise UserError(f"corpus.sources[{number}]: {error}") from error


def _listed(corpus: AnySource) -> list[Shard]:
    match corpus:
        case DocstringsCorpus():
            return list_packages(corpus)
        case HubCorpus():
            return list_hub(corpus)
        case TextCorpus() | JsonlCorpus() | ParquetCorpus():
            return list_files(corpus)
        case _:
            assert_never(corpus)


def read_shard(
    shard: Shard, corpus: AnyCorpus, cleaning: Cleaning, seed: int
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yield (DOCUMENTS, REJECTS) tables, at least one pair, about 1,000 rows each.

    Texts lose their trailing white space; empty ones are skipped. Raises UserError for a file that cannot be
    read to its end and for a text field that the whole file lacks.
    """
    if not isinstance(corpus, MixedCorpus):
        yield from _read(shard, corpus, cleaning, seed, "")
        return
    try:
        yield from _read(shard, corpus.sources[shard.member], cleaning, seed, f"{shard.member}/")
    except UserError as error:
        raise UserError(f"corpus.sources[{shard.member}]: {error}") from error


def _read(
    shard: Shard, corpus: AnySource, cleaning: Cleaning, seed: int, prefix: str
) -> Iterator[tuple[pa.Table, pa.Table]]:
    batch = _Batch(shard, corpus, seed)
    unsaid = True
    for record in _records(shard, corpus, cleaning.max_chars):
        named = record._replace(source=prefix + record.source)
        batch.add(named, _checked(record.content, cleaning.max_chars))
        if batch.full:
            yield batch.take()
            unsaid = False
    if unsaid or batch.rows:
        yield batch.take()


def _records(shard: Shard, corpus: AnySource, max_chars: int) -> Iterator[Record]:
    match corpus:
        case DocstringsCorpus():
            return read_docstrings(shard)
        case TextCorpus():
            return read_text(shard, corpus, max_chars)
        case JsonlCorpus():
            return read_jsonl(shard, corpus, max_chars)
        case ParquetCorpus():
            return read_parquet(shard, corpus)
        case HubCorpus():
            return read_hub(shard, corpus, max_chars)
        case _:
            assert_never(corpus)


def _checked(content: str | bytes | bytearray | Fault, max_chars: int) -> str | Fault:
    """The text without trailing white space, or why it is rejected."""
    if isinstance(content, Fault):
        return content
    try:
        text = (content if isinstance(content, str) else str(content, "utf-8")).rstrip()
    except UnicodeDecodeError as error:
        return not_utf8(error)
    if len(text) > max_chars:
        return too_long(len(text), text)
    if not text.isascii() and (surrogate := _SURROGATE.search(text)):
        return Fault("not Unicode", f"surrogate at character {surrogate.start()}: {text[:80]!a}")
    return text


class _Batch:
    """Rows gathered until there are enough for a table."""

    def __init__(self, shard: Shard, corpus: AnySource, seed: int) -> None:
        self._shard, self._corpus, self._seed = shard, corpus, seed
        self._start()

    def _start(self) -> None:
        self._documents: list[dict[str, Any]] = []
        self._rejects: list[dict[str, Any]] = []
        self._chars = 0

    @property
    def rows(self) -> int:
        return len(self._documents) + len(self._rejects)

    @property
    def full(self) -> bool:
        return self.rows >= BATCH_ROWS or self._chars >= BATCH_CHARS

    def add(self, record: Record, text: str | Fault) -> None:
        if isinstance(text, Fault):
            fault = {"reason": text.reason, "detail": shown(text.detail)}
            self._rejects.append({"source": record.source, "ordinal": record.ordinal, **fault})
        elif text:
            doc_id = stable_id(record.source, record.ordinal)
            key = (
                record.source if self._shard.kind == "docstrings" else doc_id
            )  # a file's docstrings stay together
            split = split_of(self._shard, self._corpus, key, self._seed)
            self._documents.append({"doc_id": doc_id, "text": text, "source": record.source, "split": split})
            self._chars += len(text)

    def take(self) -> tuple[pa.Table, pa.Table]:
        """The gathered rows as tables; begins anew."""
        tables = (
            pa.Table.from_pylist(self._documents, schema=DOCUMENTS),
            pa.Table.from_pylist(self._rejects, schema=REJECTS),
        )
        self._start()
        return tables
