"""What augmentations share: documents in, a changed copy of each out, or the reason why there is none.

DOCUMENTS (originals) ─► attempts: DOCUMENTS + `dropped` ─► DOCUMENTS (copies)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from bkray.corpus.schema import DOCUMENTS, stable_id


class Augmentation(ABC):
    """Callable pyarrow.Table -> pyarrow.Table (DOCUMENTS): at most one augmented document for each original.

    `doc_id` is derived from the original's, which becomes `parent_id`; source and split stay. What becomes of
    a document depends on (seed, kind, doc_id, text) alone, not on batches or their order.
    """

    kind: ClassVar[str]

    def __call__(self, documents: pa.Table) -> pa.Table:
        attempts = self.attempts(documents)
        return attempts.filter(pc.is_null(attempts["dropped"])).select(DOCUMENTS.names)

    def attempts(self, documents: pa.Table) -> pa.Table:
        """One row for each original, in order: its copy, and in `dropped` null or why it is not used."""
        ids = documents["doc_id"].to_pylist()
        copies = self._copies(ids, documents["text"].to_pylist())
        columns = {
            "doc_id": pa.array([stable_id(doc_id, self.kind) for doc_id in ids], pa.int64()),
            "text": pa.array([text for text, _ in copies], pa.string()),
            "source": documents["source"],
            "split": documents["split"],
            "parent_id": documents["doc_id"],
            "augmentation": pa.array([self.kind] * len(ids), pa.string()),
            "dropped": pa.array([reason for _, reason in copies], pa.string()),
        }
        schema = DOCUMENTS.append(pa.field("dropped", pa.string()))
        return pa.table({name: columns[name] for name in schema.names}, schema=schema)

    @abstractmethod
    def _copies(self, ids: Sequence[int], texts: Sequence[str]) -> list[tuple[str, str | None]]:
        """The changed text of each document, and None or the reason why it is dropped."""
