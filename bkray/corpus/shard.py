"""Shards, what a reader finds in them, and the split that each document falls in.

    list_shards ─► Shard ─► reader ─► Record (text, bytes or Fault) ─► DOCUMENTS and REJECTS

A shard is what one task reads: a file, a group of Python files, or a split of a hub data set.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bkray.config.corpus import Corpus
from bkray.corpus.schema import stable_id

_LEADING_WORD = re.compile(
    r"(?P<train>train|training)(?![a-z])"
    r"|(?P<validation>validation|valid|val|dev)(?![a-z])"
    r"|(?P<test>test|testing)(?![a-z])",
    re.IGNORECASE,
)
HELD_OUT = ("validation", "test")
HEAD_CHARS = 80


@dataclass(frozen=True)
class Shard:
    """One readable part of a corpus; cheap to send to another machine."""

    kind: str
    location: str
    """A file's URL, a package's name, or the name (or folder) of a hub data set."""
    source: str
    """Name relative to what the recipe gives, so that ids do not depend on where the data lies."""
    split: str | None
    """The source's own split, or None where it has none."""
    carve: tuple[str, ...]
    """The splits that are drawn from this shard by hash, because the source has none of that name."""
    fingerprint: str
    """Changes when the content does: size and time, ETag, package version, or hub revision."""
    bytes: int
    """Size as stored; 0 where the source does not say."""
    files: tuple[str, ...] = ()
    """Python files relative to the package's parent folder (docstrings only)."""
    member: int = 0
    """Position of its source in a mixed corpus."""

    @property
    def text_bytes(self) -> int:
        """An estimate: compressed text, and the columns of a Parquet file, grow about threefold."""
        compressed = self.kind == "parquet" or self.location.endswith((".gz", ".zst"))
        return 3 * self.bytes if compressed else self.bytes


class Fault(NamedTuple):
    """Why a document is rejected."""

    reason: str
    detail: str


class Record(NamedTuple):
    """One document as a reader found it, before it is checked; `ordinal` counts within `source`."""

    source: str
    ordinal: int
    content: str | bytes | bytearray | Fault


def too_long(chars: int, head: str) -> Fault:
    """The fault of a document of `chars` characters that begins with `head`."""
    return Fault("too long", f"{chars} characters: {head[:HEAD_CHARS]}")


def not_utf8(error: UnicodeDecodeError) -> Fault:
    """The fault of bytes that are not UTF-8, with what can be shown of them."""
    head = bytes(error.object[: 4 * HEAD_CHARS]).decode("utf-8", errors="backslashreplace")[:HEAD_CHARS]
    return Fault("not UTF-8", f"{error.reason} at byte {error.start}: {head}")


def shown(text: str) -> str:
    """`text` as it can be written: half a surrogate pair, which JSON may spell, becomes its escape."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def own_splits(names: Sequence[str]) -> list[tuple[str | None, tuple[str, ...]]]:
    """The own split of each file or hub split in `names`, and the splits to carve out of it by hash.

    A name's leading word decides: train, validation (valid, val, dev) or test. Without any train among them
    the names are no splits; beside one, a name that says nothing belongs to train.
    """
    found = [split_named(name) for name in names]
    if "train" not in found:
        return [(None, HELD_OUT)] * len(names)
    missing = tuple(split for split in HELD_OUT if split not in found)
    return [("train", missing) if split in (None, "train") else (split, ()) for split in found]


def split_named(name: str) -> str | None:
    """The split that the leading word of a path's last part names, if it does."""
    match = _LEADING_WORD.match(name.rsplit("/", 1)[-1])
    return match.lastgroup if match else None


def split_of(shard: Shard, corpus: Corpus, key: str | int, seed: int) -> str:
    """The split of the documents that share `key`: the shard's own, or one carved out of it by hash."""
    draw = stable_id(seed, "split", key) / 2**63
    for split in shard.carve:
        share = getattr(corpus, split)
        if draw < share:
            return split
        draw -= share
    return shard.split or "train"
