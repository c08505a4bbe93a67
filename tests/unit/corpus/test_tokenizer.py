"""Byte-level BPE: lossless, deterministic, every byte accounted for."""

import random
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from bkray.config import UserError
from bkray.corpus import SEPARATOR_ID, encode_documents, load_tokenizer, token_bytes, train_tokenizer
from bkray.corpus import tokenizer as module

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


def test_a_long_text_gives_the_same_words_in_pieces():
    signs = "ab'sd \t\n\r\x0b\x1c\x85\xa0\u2003\u3000\u180e\ufeffé1٣.!’\U0001f600"
    split = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    random_, cuts = random.Random(0), 0
    for _ in range(2000):
        text = "".join(random_.choices(signs, k=40)).replace("d", " ")
        pieces = list(module._pieces(text, 3))
        assert "".join(pieces) == text
        assert [word for piece in pieces for word, _ in split(piece)] == [word for word, _ in split(text)]
        cuts += len(pieces) - 1
    assert cuts > 1000


def test_a_tokenizer_trained_on_long_texts_is_that_of_their_words():
    long = "".join(f" word{i % 700}'s number {i * i % 997},\n" for i in range(20_000))
    assert len(list(module._pieces(long))) > 5
    whole = train_tokenizer(["".join(piece) for piece in module._pieces(long, 500)], 500)
    assert train_tokenizer([long], 500).to_str() == whole.to_str()


def test_texts_are_encoded_alike_however_many_at_once(tokenizer, monkeypatch):
    texts = [*TEXTS, *TRAIN[:50], "", "word " * 300]
    whole = encode_documents(tokenizer, texts)
    assert [list(batch) for batch in module._batches(texts)] == [texts]
    monkeypatch.setattr(module, "_CHARACTERS_AT_ONCE", 100)
    monkeypatch.setattr(module, "_TEXTS_AT_ONCE", 3)
    batches = list(module._batches(texts))
    assert [text for batch in batches for text in batch] == texts
    assert all(len(batch) == 1 or sum(map(len, batch)) <= 100 for batch in batches)
    assert max(map(len, batches)) == 3
    for one, other in zip(encode_documents(tokenizer, texts), whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_file_that_is_no_tokenizer(tmp_path):
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(UserError, match=r"t\.json: cannot be read as a tokenizer"):
        load_tokenizer(tmp_path / "t.json")
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(tmp_path / "none.json")
