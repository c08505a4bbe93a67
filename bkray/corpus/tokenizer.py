"""Byte-level BPE: any text in, ids out, and back without loss.

    texts ─► train_tokenizer ─► tokenizer.json ─► load_tokenizer ─► encode_documents ─► int32 ids

Id 0 is the separator between documents. Text that spells the separator out is encoded like any other text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bkray.config import UserError

SEPARATOR = "<|endoftext|>"
SEPARATOR_ID = 0
_TEXTS_AT_ONCE, _CHARACTERS_AT_ONCE = 256, 1 << 20  # an encoded character takes up to a hundred bytes
_BETWEEN_WORDS = re.compile(r"\S(?= \S)")  # where GPT-2's pattern splits whatever stands on either side


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE of at most `vocab_size` ids (arXiv 1508.07909, with the byte alphabet of GPT-2).

    The result depends on the texts alone, not on their order or on the number of threads. A small corpus may
    run out of pairs that occur twice and give fewer ids: ask `get_vocab_size()`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a `tokenizer.json` of `train_tokenizer`; raises UserError where it cannot be read as one."""
    try:
        tokenizer = Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"{path}: cannot be read as a tokenizer: {error}") from error
    if tokenizer.token_to_id(SEPARATOR) != SEPARATOR_ID:
        raise UserError(f"{path}: {SEPARATOR} must have id {SEPARATOR_ID}: train the tokenizer with bkray")
    tokenizer.encode_special_tokens = True  # not part of the file
    return tokenizer


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """UTF-8 bytes that each id stands for, int32 (V,); 0 for the separator."""
    counts = np.zeros(tokenizer.get_vocab_size(), dtype=np.int32)
    for token, token_id in tokenizer.get_vocab().items():
        counts[token_id] = len(token)  # the byte-level alphabet spells one byte a character
    counts[SEPARATOR_ID] = 0
    return counts


def encode_documents(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """The ids of each text, int32, without separators."""
    return [
        np.array(encoding.ids, dtype=np.int32)
        for batch in _batches(texts)
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False)
    ]


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts in order, up to so many and so many characters at once, but one at least."""
    start = characters = 0
    for end, text in enumerate(texts):
        full = end - start == _TEXTS_AT_ONCE or characters + len(text) > _CHARACTERS_AT_ONCE
        if full and end > start:
            yield texts[start:end]
            start, characters = end, 0
        characters += len(text)
    if start < len(texts):
        yield texts[start:]


def _pieces(text: str, size: int = 1 << 16) -> Iterator[str]:
    """A text in pieces of about `size` characters, cut where the words counted are the same: the trainer
    holds hundreds of texts at once."""
    start = 0
    while cut := _BETWEEN_WORDS.search(text, start + size):
        yield text[start : cut.end()]
        start = cut.end()
    yield text[start:]
