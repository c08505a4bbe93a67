"""Near-duplicates: documents that share most of their word n-grams with another that is kept.

    texts ─► shingles ─► MinHash signature ─► band keys ─► linked: groups that may hold near-duplicates
    a group ─► near_duplicates: Jaccard similarity where a key is shared ─► kept twins

MinHash: Broder 1997. Bands: Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4. Keys
only propose: no document goes whose n-grams do not overlap as much as the threshold says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain

import numpy as np
from rensa import RMinHash

from bkray.corpus.cleaning.hashing import ngrams, words

PERMUTATIONS = 128
_SEED = 1
_RECALL = 0.97
"""Of the pairs right at the threshold, the share that must share a key; more similar ones share more."""


def rows_per_band(threshold: float) -> int:
    """Signature rows a band: the most with which a pair at `threshold` shares a key with probability 0.97.

    There are PERMUTATIONS // rows bands; a pair of similarity s shares a key with probability
    1 - (1 - s^rows)^bands.
    """
    rows = 1
    while 1 - (1 - threshold ** (rows + 1)) ** (PERMUTATIONS // (rows + 1)) >= _RECALL:
        rows += 1
    return rows


def shingles(text: str, ngram: int) -> np.ndarray:
    """The set of a text's word n-grams: sorted unique uint64, at least one."""
    return np.unique(ngrams(words(text), ngram))


def band_keys(texts: Sequence[str], threshold: float, ngram: int) -> np.ndarray:
    """Keys of which near-duplicates share at least one: (D, bands) uint64, bands by `rows_per_band`."""
    rows = rows_per_band(threshold)
    signatures_DK = _signatures([shingles(text, ngram) for text in texts])
    bands = PERMUTATIONS // rows
    used_DBR = signatures_DK[:, : bands * rows].reshape(len(texts), bands, rows)
    return ngrams(used_DBR, rows)[..., 0]


def _signatures(sets: list[np.ndarray]) -> np.ndarray:
    ends = np.cumsum([0, *map(len, sets)], dtype=np.uint64)
    hashes = np.concatenate([np.zeros(0, np.uint64), *sets])
    made = RMinHash.digest_matrix_from_flat_token_hashes(hashes, ends, PERMUTATIONS, _SEED)
    return np.array(made.to_rows(), dtype=np.uint64).reshape(len(sets), PERMUTATIONS)


def linked(keys_DB: np.ndarray) -> np.ndarray:
    """The group of each document: (D,) int64, the lowest row that it reaches over shared keys of one band.

    Holds 8 bytes a document and band for the keys, and as much again for keys that are shared.
    """
    group = np.arange(len(keys_DB))
    bands = [(members, starts) for members, starts in map(_runs, keys_DB.T) if len(members)]
    before = None
    while before is None or not np.array_equal(group, before):
        before = group.copy()
        for members, starts in bands:
            lowest = np.minimum.reduceat(group[members], starts)
            group[members] = np.repeat(lowest, np.diff(starts, append=len(members)))
        group = group[group]
    return group


def _runs(keys_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows whose key another row has, those of one key together, and where each key's begin."""
    order = np.argsort(keys_D, kind="stable")
    begins = np.ones(len(order) + 1, dtype=bool)
    begins[1:-1] = keys_D[order[1:]] != keys_D[order[:-1]]
    shared = ~(begins[:-1] & begins[1:])
    return order[shared], np.flatnonzero(begins[:-1][shared])


def near_duplicates(
    texts: Sequence[str], held_out_D: np.ndarray, threshold: float, ngram: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each document the row of its most similar kept twin, or -1 where it is kept, and their similarity.

    `texts` are whole groups (`linked`), the held-out documents first, else by id: a document that is not held
    out goes where its Jaccard similarity with a kept one before it is at least `threshold`.
    """
    twin_D, similarity_D = np.full(len(texts), -1), np.zeros(len(texts))
    keys_DB = band_keys(texts, threshold, ngram)
    kept_by_key: dict[tuple[int, int], list[int]] = defaultdict(list)
    kept_shingles: dict[int, np.ndarray] = {}
    for row, text in enumerate(texts):
        mine, keys = shingles(text, ngram), list(enumerate(keys_DB[row].tolist()))
        if not held_out_D[row]:
            candidates = sorted(set(chain.from_iterable(kept_by_key[key] for key in keys)))
            similar = [(jaccard(mine, kept_shingles[other]), -other) for other in candidates]
            similarity, other = max(similar, default=(0.0, 0))
            if similarity >= threshold:
                twin_D[row], similarity_D[row] = -other, similarity
                continue
        kept_shingles[row] = mine
        for key in keys:
            kept_by_key[key].append(row)
    return twin_D, similarity_D


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Shared over all elements of two sets, each sorted and unique."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)
