"""The embedding of a new vocabulary, made of the rows of the one that a model was trained with.

    new token ─┬─► in both vocabularies, by its bytes ─► its row ─────────────────┬─► row of the new embedding
               └─► its pieces under the old tokenizer ─► the mean of their rows ──┘

A simple variant of FOCUS (arXiv 2305.14481) and WECHSEL (arXiv 2112.06598), which weigh many similar tokens,
found by auxiliary embeddings, where this takes the pieces of the token itself.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F


def token_pieces(old: Tokenizer, new: Tokenizer) -> list[list[int]]:
    """Of every id of `new` the ids of `old` that spell its bytes: a single one where both have the token.

    Both are byte-level BPE with the whole byte alphabet, so a token's spelling is its bytes and pieces are
    always found, those of a part of a character too.
    """
    shared, spelled = old.get_vocab(), new.get_vocab()
    return [
        [shared[token]] if token in shared else [piece.id for piece in old.model.tokenize(token)]
        for token in sorted(spelled, key=spelled.__getitem__)
    ]


def embed(weight_Vd: Tensor, pieces: list[list[int]]) -> Tensor:
    """Means of the rows of `weight` (V, d) that `pieces` names for every new id: (len(pieces), d)."""
    starts = torch.tensor([0, *map(len, pieces)]).cumsum(0)[:-1]
    ids = torch.tensor([row for rows in pieces for row in rows])
    return F.embedding_bag(ids, weight_Vd, starts, mode="mean")
