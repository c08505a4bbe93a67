"""Exact duplicates: the copy with the lowest id stays.

documents ─► ids, text_hash ─► (grouped by hash elsewhere) ─► copies ─► ids of what goes
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from bkray.corpus.schema import stable_id


def text_hash(text: str) -> int:
    """63-bit hash of a text: equal texts and, but for chance (n² / 2⁶⁴), no others share it."""
    return stable_id(text)


def copies(table: pa.Table) -> np.ndarray:
    """Which rows share their `text_hash` with one that has a lower `doc_id`: (D,) bool.

    `table` must hold every copy of the hashes in it.
    """
    hashes, ids = table["text_hash"].to_numpy(), table["doc_id"].to_numpy()
    order = np.lexsort((ids, hashes))
    found = np.zeros(len(order), dtype=bool)
    found[order[1:]] = hashes[order[1:]] == hashes[order[:-1]]
    return found
