"""Documents joined to one stream of tokens and cut into windows.

doc_id order ─► | text … | text … | text …            a separator before every document
                └──── N + 1 ────┘
                                └──── N + 1 ────┘     stride N: every target is predicted exactly once
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from bkray.corpus.schema import stable_id, windows_schema
from bkray.corpus.tokenizer import SEPARATOR_ID, encode_documents, token_bytes

_OF_OWNER = ("doc_id", "split", "parent_id", "augmentation")  # of the document in whose text a window begins


def pack(documents: pa.Table, tokenizer: Tokenizer, window: int) -> tuple[pa.Table, int]:
    """Pack `documents` into windows of `window` targets (N); also the number of targets dropped at the end.

    All rows must share one split and one augmentation. A window carries the id, parent and augmentation of
    the document of its first target (a separator belongs to the document that it opens). The order of the
    rows changes nothing.
    """
    schema = windows_schema(window)
    if documents.num_rows == 0:
        return schema.empty_table(), 0
    for column in ("split", "augmentation"):
        if len(pc.unique(documents[column])) > 1:
            raise ValueError(f"pack takes documents of one {column}, not of {pc.unique(documents[column])}")
    documents = documents.sort_by("doc_id")
    stream, starts = _stream(encode_documents(tokenizer, documents["text"].to_pylist()))

    count = (len(stream) - 1) // window
    dropped = len(stream) - 1 - count * window
    if count == 0:
        return schema.empty_table(), dropped
    tokens = np.lib.stride_tricks.sliding_window_view(stream, window + 1)[::window]  # (windows, N + 1)
    first_targets = np.arange(count) * window + 1
    rows = np.searchsorted(starts, first_targets, side="right") - 1
    offsets = first_targets - starts[rows]

    owners = documents.select(_OF_OWNER).take(pa.array(rows))
    ids = [
        stable_id(doc_id, offset, "window")
        for doc_id, offset in zip(owners["doc_id"].to_pylist(), offsets.tolist(), strict=True)
    ]
    columns = {
        "window_id": pa.array(ids, pa.int64()),
        "tokens": pa.FixedSizeListArray.from_arrays(pa.array(tokens.ravel()), window + 1),
        "target_bytes": pa.array(token_bytes(tokenizer)[tokens[:, 1:]].sum(axis=1, dtype=np.int32)),
        **{name: owners[name] for name in _OF_OWNER},
    }
    return pa.table({name: columns[name] for name in schema.names}, schema=schema), dropped


def _stream(encoded: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All tokens with a separator before each document, and the position of each separator."""
    lengths = np.array([len(ids) + 1 for ids in encoded])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    stream = np.full(lengths.sum(), SEPARATOR_ID, dtype=np.int32)
    for start, ids in zip(starts, encoded, strict=True):
        stream[start + 1 : start + 1 + len(ids)] = ids
    return stream, starts
