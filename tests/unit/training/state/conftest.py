"""Vocabularies as small as the models of these tests."""

import pytest
from tokenizers import Tokenizer, models

from bkray.corpus.tokenizer import SEPARATOR


@pytest.fixture
def save_tokenizer():
    """Write a tokenizer of so many tokens to a path; other words make another vocabulary."""

    def save(path, tokens, word="w"):
        vocabulary = {SEPARATOR: 0} | {f"{word}{number}": number for number in range(1, tokens)}
        Tokenizer(models.WordLevel(vocabulary)).save(str(path))
        return path

    return save
