"""Exact duplicates."""

import numpy as np
import pyarrow as pa

from bkray.corpus import copies, text_hash


def test_lowest_id_of_each_text_stays_whatever_the_order():
    rng = np.random.default_rng(0)
    texts = [f"text {i}" for i in rng.integers(0, 50, 400)]
    ids = rng.permutation(400)
    table = pa.table({"doc_id": ids, "text": texts, "text_hash": [text_hash(t) for t in texts]})
    goes = copies(table)
    kept = table.filter(pa.array(~goes))
    lowest: dict[str, int] = {}
    for doc_id, text in zip(ids.tolist(), texts, strict=True):
        lowest[text] = min(doc_id, lowest.get(text, doc_id))
    assert dict(zip(kept["text"].to_pylist(), kept["doc_id"].to_pylist(), strict=True)) == lowest
    assert kept.num_rows == len(lowest)
    order = rng.permutation(400)
    assert (copies(table.take(pa.array(order))) == goes[order]).all()


def test_no_rows_and_no_duplicates():
    table = pa.table({"doc_id": [2, 1], "text_hash": [5, 6]})
    assert copies(table).tolist() == [False, False]
    assert copies(table.slice(0, 0)).tolist() == []


def test_hash_is_a_stable_int64():
    assert text_hash("abc") == text_hash("abc") != text_hash("abd")
    assert 0 <= text_hash("ü") < 2**63
