"""Corpora that are read in one place, beside the documents of a run: a trusted sample, a target, what a
tokenizer is trained on.

shards ─► documents, a table at a time
      └─► rejects, kept ─► rejects.parquet of the stage that asked, its manifest and the report
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bkray.config import UserError
from bkray.config.corpus import AnyCorpus, Cleaning, MixedCorpus
from bkray.corpus import REJECTS, Shard, read_shard

REJECTED = "rejects.parquet"

Tables = Iterator[tuple[pa.Table, pa.Table]]
"""DOCUMENTS and REJECTS of a shard."""


class Reading:
    """The documents of the corpus that `setting` names, and what was rejected when they were last read."""

    def __init__(self, setting: str, corpus: AnyCorpus, shards: Sequence[Shard], cleaning: Cleaning) -> None:
        self.setting, self.corpus, self.shards, self.cleaning = setting, corpus, shards, cleaning
        self._rejects: list[pa.Table] = []
        self._accepted = 0

    @property
    def rejects(self) -> pa.Table:
        """Of what was read since reading was last begun; what is rejected depends on no seed."""
        return pa.concat_tables([REJECTS.empty_table(), *self._rejects])

    def documents(self, seed: int) -> Iterator[pa.Table]:
        """DOCUMENTS, their splits drawn with `seed`; UserError where they cannot be read or by `check`."""
        yield from (documents for documents, *_ in self._read(lambda shard: [self._tables(shard, seed)]))

    def trained_on(self, seeds: Sequence[int]) -> Iterator[pa.Table]:
        """The documents that none of the seeds which draw the splits holds out; UserError where none is.

        A source of a mixed corpus has other splits where it is a corpus of its own: those count as well.
        """
        rows = 0
        for drawn in self._read(lambda shard: self._draws(shard, seeds)):
            trains = [pc.equal(documents["split"], "train") for documents in drawn]
            trained = drawn[0].filter(reduce(pc.and_, trains))
            rows += trained.num_rows
            yield trained
        if not rows:
            raise UserError(f"{self.setting}: no document of it is for training: set its shares lower")

    def _draws(self, shard: Shard, seeds: Sequence[int]) -> list[Tables]:
        """The same documents in the same order, as often as their splits may be drawn otherwise."""
        if not shard.carve:
            return [self._tables(shard, seeds[0])]
        draws = [self._tables(shard, seed) for seed in seeds]
        if isinstance(self.corpus, MixedCorpus):
            own, alone = self.corpus.sources[shard.member], replace(shard, member=0)
            draws += [read_shard(alone, own, self.cleaning, seed) for seed in seeds]
        return draws

    def _tables(self, shard: Shard, seed: int) -> Tables:
        return read_shard(shard, self.corpus, self.cleaning, seed)

    def _read(self, draws: Callable[[Shard], list[Tables]]) -> Iterator[list[pa.Table]]:
        """The next documents of every draw of a shard, shard after shard; what is rejected counts once."""
        self._rejects, self._accepted = [], 0
        try:
            for shard in self.shards:
                for drawn in zip(*draws(shard), strict=True):
                    documents, rejects = drawn[0]
                    self._rejects += [rejects] if rejects.num_rows else []
                    self._accepted += documents.num_rows
                    yield [documents for documents, _ in drawn]
        except UserError as error:
            raise UserError(f"{self.setting}: {error}") from error
        self.check()

    def check(self) -> None:
        """Raise UserError where a larger share of what was read than cleaning.max_rejects was rejected."""
        rejects = self.rejects
        if too_many(rejects.num_rows, self._accepted, self.cleaning):
            first = rejects.slice(0, 1).to_pylist()[0]
            raise many_rejected(self.setting, rejects.num_rows, self._accepted, self.cleaning, first)


def write_rejects(readings: dict[str, Reading], path: Path) -> None:
    """Write the rejects of all to `path`; sources follow the name of the reading, where it has one."""
    tables = [REJECTS.empty_table()]
    for name, reading in readings.items():
        rejects = reading.rejects
        named = [f"{name}/{source}" if name else source for source in rejects["source"].to_pylist()]
        tables.append(rejects.set_column(0, REJECTS.field("source"), pa.array(named, pa.string())))
    pq.write_table(pa.concat_tables(tables), path)


def too_many(rejected: int, accepted: int, cleaning: Cleaning) -> bool:
    """Whether so many documents are a larger share than `cleaning.max_rejects`."""
    return rejected > cleaning.max_rejects * (accepted + rejected)


def many_rejected(
    setting: str, rejected: int, accepted: int, cleaning: Cleaning, first: dict[str, Any], finer: str = ""
) -> UserError:
    """The error of `too_many`; `first` is the first row of the rejects, `finer` the begin of the mend."""
    return UserError(
        f"{setting}: {rejected:,} of {accepted + rejected:,} documents were rejected, more than "
        f"cleaning.max_rejects {cleaning.max_rejects:g}; the first is document {first['ordinal']} of "
        f"{first['source']}: {first['reason']} ({first['detail']}): {finer}mend the rows or raise "
        "cleaning.max_rejects"
    )
