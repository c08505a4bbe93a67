"""Corpora that are read in one place, beside the documents of a run: a trusted sample, a target, what a
tokenizer is trained on.

shards ─► documents, a table at a time
      └─► rejects, kept ─► rejects.parquet of the stage that asked, its manifest and the report
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bkray.config import UserError
from bkray.config.corpus import AnyCorpus, Cleaning
from bkray.corpus import DOCUMENTS, REJECTS, Shard, read_shard

REJECTED = "rejects.parquet"


class Reading:
    """The documents of the corpus that `setting` names, and what was rejected when they were last read."""

    def __init__(self, setting: str, corpus: AnyCorpus, shards: Sequence[Shard], cleaning: Cleaning) -> None:
        self.setting, self.corpus, self.shards, self.cleaning = setting, corpus, shards, cleaning
        self._rejects: list[pa.Table] = []
        self._accepted = 0

    @property
    def rejects(self) -> pa.Table:
        """Of what was read since `documents` was last begun; what is rejected depends on no seed."""
        return pa.concat_tables([REJECTS.empty_table(), *self._rejects])

    def documents(self, seed: int) -> Iterator[pa.Table]:
        """DOCUMENTS, their splits drawn with `seed`; UserError where they cannot be read or by `check`."""
        self._rejects, self._accepted = [], 0
        try:
            for shard in self.shards:
                for documents, rejects in read_shard(shard, self.corpus, self.cleaning, seed):
                    self._rejects += [rejects] if rejects.num_rows else []
                    self._accepted += documents.num_rows
                    yield documents
        except UserError as error:
            raise UserError(f"{self.setting}: {error}") from error
        self.check()

    def trained_on(self, seeds: Sequence[int]) -> Iterator[pa.Table]:
        """The documents that none of the seeds which draw the splits holds out; UserError where none is."""
        first, *others = seeds
        ids = [DOCUMENTS.empty_table().select(["doc_id"])]
        for seed in others:
            for documents in self.documents(seed):
                ids.append(documents.filter(pc.not_equal(documents["split"], "train")).select(["doc_id"]))
        held_out, rows = pa.concat_tables(ids)["doc_id"].combine_chunks(), 0
        for documents in self.documents(first):
            out = pc.or_(pc.not_equal(documents["split"], "train"), pc.is_in(documents["doc_id"], held_out))
            trained = documents.filter(pc.invert(out))
            rows += trained.num_rows
            yield trained
        if not rows:
            raise UserError(f"{self.setting}: no document of it is for training: set its shares lower")

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
