"""Rows of a new vocabulary: copied where both have the token, the mean of its pieces elsewhere."""

import pytest
import torch
from tokenizers import pre_tokenizers

from bkray.corpus.tokenizer import SEPARATOR_ID, train_tokenizer
from bkray.training.techniques.vocabulary import embed, token_pieces

OLD = ["the cat sat on the mat", "the rat sat on the hat"] * 3
NEW = ["the cat and the ratatouille, größte 日本", "das größte Rat, größte 日本"] * 3


@pytest.fixture(scope="module")
def tokenizers():
    return train_tokenizer(OLD, 290), train_tokenizer(NEW, 310)


def test_pieces_spell_the_bytes_of_their_token_and_a_shared_one_is_its_own(tokenizers):
    old, new = tokenizers
    pieces = token_pieces(old, new)
    known = old.get_vocab()
    assert len(pieces) == new.get_vocab_size()
    for token, row in new.get_vocab().items():
        assert "".join(old.id_to_token(piece) for piece in pieces[row]) == token
        assert (len(pieces[row]) == 1) == (token in known)
    assert pieces[SEPARATOR_ID] == [SEPARATOR_ID]
    assert {known["Ġthe"], known["at"]} <= {rows[0] for rows in pieces if len(rows) == 1}


def test_pieces_are_those_that_the_old_tokenizer_cuts_text_into(tokenizers):
    old, new = tokenizers
    pieces = token_pieces(old, new)
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    texts = {row: new.decode([row]) for token, row in new.get_vocab().items() if set(token) <= alphabet}
    whole = {row: text for row, text in texts.items() if "\ufffd" not in text and len(pieces[row]) > 1}
    assert " größte" in whole.values()
    for row, text in whole.items():
        assert pieces[row] == old.encode(text).ids


def test_rows_are_the_means_of_their_pieces():
    weight = torch.randn(5, 3)
    found = embed(weight, [[4], [0, 2], [1, 1, 3]])
    assert torch.equal(found[0], weight[4])
    torch.testing.assert_close(found[1], (weight[0] + weight[2]) / 2)
    torch.testing.assert_close(found[2], (2 * weight[1] + weight[3]) / 3)
