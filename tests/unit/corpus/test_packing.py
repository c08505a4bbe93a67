"""Packing: every target once, every byte counted, row order without effect."""

import numpy as np
import pyarrow as pa
import pytest

from bkray.corpus import (
    DOCUMENTS,
    encode_documents,
    pack,
    stable_id,
    token_bytes,
    train_tokenizer,
    windows_schema,
)

RNG = np.random.default_rng(0)
WORDS = ["alpha", "beta", "gamma", "naïve", "日本", "\n"]


def documents(count, longest=60, augmentation=None, first=0):
    rows = [
        {
            "doc_id": stable_id("packing", first + i),
            "text": " ".join(RNG.choice(WORDS, RNG.integers(1, longest))),
            "source": "packing",
            "split": "train",
            "parent_id": None if augmentation is None else i,
            "augmentation": augmentation,
        }
        for i in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=DOCUMENTS)


TOKENIZER = train_tokenizer(documents(50)["text"].to_pylist(), 300)


@pytest.mark.parametrize("window", [2, 7, 32])
@pytest.mark.parametrize("count", [1, 40])
def test_targets_reproduce_the_stream_once(window, count):
    table = documents(count)
    windows, dropped = pack(table, TOKENIZER, window)
    assert windows.schema == windows_schema(window)
    ordered = table.sort_by("doc_id")
    texts = ordered["text"].to_pylist()
    stream = np.concatenate([np.r_[0, ids] for ids in encode_documents(TOKENIZER, texts)])
    tokens = np.array(windows["tokens"].to_pylist(), dtype=np.int64).reshape(-1, window + 1)
    targets = tokens[:, 1:].ravel()
    assert np.array_equal(targets, stream[1 : 1 + len(targets)])
    assert np.array_equal(tokens[1:, 0], tokens[:-1, -1])
    assert len(targets) + dropped == len(stream) - 1
    assert dropped < window
    tail = token_bytes(TOKENIZER)[stream[1 + len(targets) :]].sum()
    assert sum(windows["target_bytes"].to_pylist()) + tail == sum(len(text.encode()) for text in texts)


def test_the_windows_of_a_long_document_do_not_each_hold_its_text():
    text = " ".join(RNG.choice(WORDS, 30_000))
    table = documents(1).set_column(1, DOCUMENTS.field("text"), pa.array([text]))
    before = pa.default_memory_pool()
    pool = pa.system_memory_pool()  # nothing else uses it
    pa.set_memory_pool(pool)
    try:
        windows, _ = pack(table, TOKENIZER, 16)
    finally:
        pa.set_memory_pool(before)
    assert windows.num_rows > 300
    assert pool.max_memory() < 50 * len(text)


def test_windows_belong_to_the_document_of_their_first_target():
    table = documents(30, augmentation="swap")
    windows, _ = pack(table, TOKENIZER, 16)
    by_id = {row["doc_id"]: row for row in table.to_pylist()}
    owner_of_target = []
    for row in table.sort_by("doc_id").to_pylist():
        length = 1 + len(encode_documents(TOKENIZER, [row["text"]])[0])
        owner_of_target += [(row["doc_id"], offset) for offset in range(length)]
    for i, row in enumerate(windows.to_pylist()):
        doc_id, offset = owner_of_target[i * 16 + 1]
        assert row["doc_id"] == doc_id
        assert row["window_id"] == stable_id(doc_id, offset, "window")
        assert row["parent_id"] == by_id[doc_id]["parent_id"]
        assert (row["augmentation"], row["split"]) == ("swap", "train")
    assert len(set(windows["window_id"].to_pylist())) == windows.num_rows


def test_row_order_and_chunks_change_nothing():
    table = documents(40)
    expected, dropped = pack(table, TOKENIZER, 16)
    permuted = table.take(pa.array(RNG.permutation(40)))
    chunked = pa.concat_tables([permuted.slice(0, 13), permuted.slice(13)])
    assert pack(chunked, TOKENIZER, 16) == (expected, dropped)


def test_too_little_text_and_no_text():
    table = documents(1)
    length = len(encode_documents(TOKENIZER, table["text"].to_pylist())[0])
    windows, dropped = pack(table, TOKENIZER, length + 1)
    assert (windows.num_rows, dropped) == (0, length)
    assert pack(table, TOKENIZER, length)[0].num_rows == 1
    windows, dropped = pack(DOCUMENTS.empty_table(), TOKENIZER, 8)
    assert (windows.num_rows, dropped, windows.schema) == (0, 0, windows_schema(8))


def test_mixed_rows_are_refused():
    mixed = pa.concat_tables([documents(2), documents(2, augmentation="swap", first=2)])
    with pytest.raises(ValueError, match="documents of one augmentation"):
        pack(mixed, TOKENIZER, 8)
