"""Byte-level BPE: lossless, deterministic, every byte accounted for."""

import subprocess
import sys

import numpy as np
import pytest

from bkray.config import UserError
from bkray.corpus import SEPARATOR_ID, encode_documents, load_tokenizer, token_bytes, train_tokenizer

TRAIN = [
    f"The {w} of the number {i} is an element of the ring Z/{i}Z.\n"
    for i in range(200)
    for w in ("sum", "unit")
]
TEXTS = [
    "plain text",
    "  spaces \t and\n\n\nlines ",
    "ünïcödé — 日本語 \U0001f600 e\u0301 \u200d",
    "spelt out: <|endoftext|> is text",
    "\x00\x01\x7f control",
    "x" * 5000,
    "",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TRAIN, 400)


def test_round_trip_and_bytes_on_any_text(tokenizer, tmp_path):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for candidate in (tokenizer, load_tokenizer(tmp_path / "tokenizer.json")):
        counts = token_bytes(candidate)
        assert counts.dtype == np.int32
        assert counts.shape == (candidate.get_vocab_size(),)
        for text, ids in zip(TEXTS, encode_documents(candidate, TEXTS), strict=True):
            assert ids.dtype == np.int32
            assert candidate.decode(ids.tolist(), skip_special_tokens=False) == text
            assert counts[ids].sum() == len(text.encode())
            assert SEPARATOR_ID not in ids


def test_vocabulary(tokenizer):
    assert tokenizer.get_vocab_size() == 400
    assert tokenizer.token_to_id("<|endoftext|>") == SEPARATOR_ID == 0
    assert token_bytes(tokenizer)[0] == 0
    assert (token_bytes(tokenizer)[1:] > 0).all()
    assert len(encode_documents(tokenizer, TRAIN[:1])[0]) < len(TRAIN[0]) / 2


def test_small_corpus_gives_a_smaller_vocabulary():
    assert 257 <= train_tokenizer(["aa aa"], 5000).get_vocab_size() < 265


def test_training_is_deterministic_in_threads_and_order(tmp_path):
    code = (
        "import sys; from bkray.corpus import train_tokenizer\n"
        "texts = [f'{a}{b} {c}{a}' for a in 'abcdefghij' for b in 'xyzuvw' for c in 'klmno']\n"
        "texts = texts[::-1] if sys.argv[1] == 'reversed' else texts\n"
        "sys.stdout.write(train_tokenizer(iter(texts), 600).to_str())"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code, order],
            env={"RAYON_NUM_THREADS": threads, "PATH": ""},
            capture_output=True,
            check=True,
        ).stdout
        for threads, order in (("1", "given"), ("2", "given"), ("4", "reversed"))
    ]
    assert outputs[0] == outputs[1] == outputs[2]
    assert len(outputs[0]) > 5000


def test_file_that_is_no_tokenizer(tmp_path):
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(UserError, match=r"t\.json: cannot be read as a tokenizer"):
        load_tokenizer(tmp_path / "t.json")
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(tmp_path / "none.json")
