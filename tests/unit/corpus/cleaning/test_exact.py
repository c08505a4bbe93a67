"""Exact duplicates."""

import numpy as np
import pyarrow as pa

from bkray.corpus import first_of_duplicates, text_hash


def test_lowest_id_of_each_text_stays_whatever_the_order():
    rng = np.random.default_rng(0)
    texts = [f"text {i}" for i in rng.integers(0, 50, 400)]
    ids = rng.permutation(400)
    table = pa.table({"doc_id": ids, "text": texts, "text_hash": [text_hash(t) for t in texts]})
    kept, removed = first_of_duplicates(table)
    lowest: dict[str, int] = {}
    for doc_id, text in zip(ids.tolist(), texts, strict=True):
        lowest[text] = min(doc_id, lowest.get(text, doc_id))
    assert dict(zip(kept["text"].to_pylist(), kept["doc_id"].to_pylist(), strict=True)) == lowest
    assert kept.num_rows == len(lowest) == 400 - removed
    positions = [ids.tolist().index(doc_id) for doc_id in kept["doc_id"].to_pylist()]
    assert positions == sorted(positions)
    shuffled = table.take(pa.array(rng.permutation(400)))
    assert first_of_duplicates(shuffled)[0].sort_by("doc_id") == kept.sort_by("doc_id")


def test_no_rows_and_no_duplicates():
    table = pa.table({"doc_id": [2, 1], "text_hash": [5, 6]})
    assert first_of_duplicates(table) == (table, 0)
    assert first_of_duplicates(table.slice(0, 0))[0].num_rows == 0


def test_hash_is_a_stable_int64():
    assert text_hash("abc") == text_hash("abc") != text_hash("abd")
    assert 0 <= text_hash("ü") < 2**63
