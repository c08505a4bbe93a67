"""Exact duplicates: the copy with the lowest id stays.

documents ─► text_hash ─► (grouped by hash elsewhere) ─► first_of_duplicates ─► documents, copies removed
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from bkray.corpus.schema import stable_id


def text_hash(text: str) -> int:
    """63-bit hash of a text: equal texts and, but for chance (n² / 2⁶⁴), no others share it."""
    return stable_id(text)


def first_of_duplicates(table: pa.Table) -> tuple[pa.Table, int]:
    """Keep the row with the lowest `doc_id` of each `text_hash`, in the order given; also the number removed.

    `table` must hold every copy of the hashes in it.
    """
    hashes, ids = table["text_hash"].to_numpy(), table["doc_id"].to_numpy()
    order = np.lexsort((ids, hashes))
    first = np.ones(len(order), dtype=bool)
    first[1:] = hashes[order[1:]] != hashes[order[:-1]]
    kept = np.zeros(len(order), dtype=bool)
    kept[order[first]] = True
    return table.filter(pa.array(kept)), int(len(order) - first.sum())
