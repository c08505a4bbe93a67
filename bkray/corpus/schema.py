"""The rows that stages exchange, their stable identities and their keyed randomness.

    document ──packing──► window ──► + difficulty, uncertainty …

Every id is a hash of what the row is, and every random draw is keyed by (seed, stage, row id): neither block
count, batch size, retry nor cluster size can change a byte of the output.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

SPLITS = ("train", "validation", "test")

DOCUMENTS = pa.schema(
    [
        pa.field("doc_id", pa.int64(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("parent_id", pa.int64()),  # null for originals
        pa.field("augmentation", pa.string()),  # null for originals
    ]
)

REJECTS = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("ordinal", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)


def windows_schema(window: int) -> pa.Schema:
    """Windows of `window` targets: `window` + 1 token ids, the first of which is input only."""
    return pa.schema(
        [
            pa.field("window_id", pa.int64(), nullable=False),
            pa.field("doc_id", pa.int64(), nullable=False),  # the document of the first target
            pa.field("split", pa.string(), nullable=False),
            pa.field("tokens", pa.list_(pa.int32(), window + 1), nullable=False),
            pa.field("target_bytes", pa.int32(), nullable=False),  # UTF-8 bytes that the targets stand for
            pa.field("parent_id", pa.int64()),  # the original document of doc_id; null for originals
            pa.field("augmentation", pa.string()),  # null for originals
        ]
    )


def score_field(name: str, width: int | None = None) -> pa.Field:
    """The column of a score: one number of a window, or `width` of them.

    Several are `reference_loss`, in nats, one of each target, and `embedding`, one of each channel.
    """
    kind = pa.list_(pa.float16(), width) if width else pa.float32()
    return pa.field(name, kind, nullable=False)


def score_array(values: np.ndarray) -> pa.Array:
    """Scores (W,) as float32, or (W, N) as lists of float16."""
    if values.ndim == 1:
        return pa.array(values.astype(np.float32))
    flat = pa.array(values.astype(np.float16).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def soft_targets_fields(window: int, k: int, vocabulary: int) -> list[pa.Field]:
    """`soft_ids` and `soft_log_probs`: of every target k tokens and their log-probabilities, nats, flat."""
    ids = pa.uint16() if vocabulary <= 1 << 16 else pa.int32()
    return [
        pa.field("soft_ids", pa.list_(ids, window * k), nullable=False),
        pa.field("soft_log_probs", pa.list_(pa.float16(), window * k), nullable=False),
    ]


def stable_id(*parts: str | int) -> int:
    """A 63-bit id (int64, not negative) that depends on `parts` alone."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big") >> 1


def row_rng(seed: int, stage: str, row_id: int) -> np.random.Generator:
    """The random generator of one row in one stage (counter-based Philox)."""
    key = np.array([(seed << 32) | (stable_id(stage) & 0xFFFFFFFF), row_id], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
