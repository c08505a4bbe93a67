"""Near-duplicates: documents that share most of their word n-grams with another that is kept.

    texts ─► shingles ─► MinHash signature ─► sketches: band keys and digests
    sketches ─► alike: documents that may have a near-duplicate ─► linked: groups of them
    a group ─► near_duplicates: where a key is shared, signatures ─► Jaccard similarity ─► kept twins

MinHash: Broder 1997. Bands: Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4. Keys
only propose: no document goes whose n-grams do not overlap as much as the threshold says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from rensa import RMinHash

from bkray.corpus.cleaning.hashing import ngrams, words

PERMUTATIONS = 128
_SEED = 1
_RECALL = 0.97
"""Of the pairs right at the threshold, the share that must share a key; more similar ones share more."""
MOST_A_KEY = 256
"""Kept documents that a key proposes, the first ones: pages of one template would else all be compared."""
_DEVIATIONS = 4  # an estimate from signatures may be so much too low: of 30,000 at the threshold one is more
_SHINGLES = 1 << 20  # of documents that are compared at once, beside those of the last
_AT_ONCE = 1024  # signatures, which come as lists of Python's numbers
_PAIRED = 64  # of a key of more documents not every pair is looked at: all of these count as alike


def rows_per_band(threshold: float) -> int:
    """Signature rows a band: the most with which a pair at `threshold` shares a key with probability 0.97.

    There are PERMUTATIONS // rows bands; a pair of similarity s shares a key with probability
    1 - (1 - s^rows)^bands.
    """
    rows = 1
    while 1 - (1 - threshold ** (rows + 1)) ** (PERMUTATIONS // (rows + 1)) >= _RECALL:
        rows += 1
    return rows


def shingles(words_n: np.ndarray, ngram: int) -> np.ndarray:
    """The set of the n-grams of a text's `words`: sorted unique uint64, at least one."""
    return np.unique(ngrams(words_n, ngram))


def sketches(texts: Sequence[str], threshold: float, ngram: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys of which near-duplicates share at least one, (D, bands) uint64, bands by `rows_per_band`; digests.

    A digest (PERMUTATIONS,) uint8 is a byte of every value of the signature.
    """
    signatures_DK = signatures([shingles(words(text), ngram) for text in texts])
    return keys_of(signatures_DK, threshold), signatures_DK.astype(np.uint8)


def keys_of(signatures_DK: np.ndarray, threshold: float) -> np.ndarray:
    """The keys of signatures: (D, bands) uint64."""
    rows = rows_per_band(threshold)
    bands = PERMUTATIONS // rows
    used_DBR = signatures_DK[:, : bands * rows].reshape(len(signatures_DK), bands, rows)
    return ngrams(used_DBR, rows)[..., 0]


def signatures(sets: list[np.ndarray]) -> np.ndarray:
    """The MinHash values of each set: (D, PERMUTATIONS) uint32."""
    pieces = [_digests(sets[at : at + _AT_ONCE]) for at in range(0, len(sets), _AT_ONCE)]
    return np.concatenate([np.zeros((0, PERMUTATIONS), np.uint32), *pieces])


def _digests(sets: list[np.ndarray]) -> np.ndarray:
    ends = np.cumsum([0, *map(len, sets)], dtype=np.uint64)
    made = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(sets), ends, PERMUTATIONS, _SEED)
    return np.array(made.to_rows(), dtype=np.uint32)


def alike(keys_DB: np.ndarray, digests_DK: np.ndarray, threshold: float) -> np.ndarray:
    """Which documents may have a near-duplicate: (D,) bool.

    They share a key with one that their digests do not say is far below the threshold; most that share a key
    do so by chance. All documents of a key of many count.
    """
    alike_D, least = np.zeros(len(keys_DB), dtype=bool), _least_equal(threshold)
    for members, starts in map(_runs, keys_DB.T):
        sizes = np.diff(starts, append=len(members))
        run = np.repeat(np.arange(len(starts)), sizes)
        alike_D[members[sizes[run] > _PAIRED]] = True
        for apart in range(1, _PAIRED):
            first = np.flatnonzero(run[apart:] == run[:-apart])
            if not len(first):
                break
            pairs = np.stack([members[first], members[first + apart]])
            pairs = pairs[:, ~alike_D[pairs].all(axis=0)]
            for some in np.array_split(pairs, pairs.shape[1] // _AT_ONCE + 1, axis=1):
                one, other = digests_DK[some]
                alike_D[some[:, np.count_nonzero(one == other, axis=1) >= least]] = True
    return alike_D


def _least_equal(threshold: float) -> float:
    """Of the values of two signatures so many are equal, unless the documents are far below the threshold."""
    mean, variance = PERMUTATIONS * threshold, PERMUTATIONS * threshold * (1 - threshold)
    return float(mean - _DEVIATIONS * variance**0.5)


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
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each document the row of its most similar kept twin, or -1 where it is kept, and their similarity.

    `texts` are whole groups (`alike`, `linked`), the held-out documents first, else by id: a document that is
    not held out goes where its Jaccard similarity with a kept one before it is at least `threshold`. The last
    (D,) says which of these were not compared with all that share a key, which proposes its first MOST_A_KEY.
    """
    sets = [shingles(words(text), ngram) for text in texts]
    signatures_DK = signatures(sets)
    compared, kept = Compared(sets, signatures_DK, threshold), _Kept()
    del sets
    marks = compared.marks()
    twin_D, similarity_D = np.full(len(texts), -1), np.zeros(len(texts))
    crowded_D = np.zeros(len(texts), dtype=bool)
    for row, keys in enumerate(_shared_keys(keys_of(signatures_DK, threshold))):
        if not held_out_D[row]:
            crowded_D[row] = any(key in kept.full for key in keys)
            asked = compared.of_row(row)
            twin, similarity = compared.most_similar(asked, kept.candidates(keys), marks)
            if similarity >= threshold:
                twin_D[row], similarity_D[row] = twin, similarity
                continue
        kept.add(row, keys)
    return twin_D, similarity_D, crowded_D


def _shared_keys(keys_DB: np.ndarray) -> Iterator[list[tuple[int, int]]]:
    """The keys of each document that another one has as well, each with its band."""
    shared_DB = np.zeros(keys_DB.shape, dtype=bool)
    for band, keys_D in enumerate(keys_DB.T):
        shared_DB[_runs(keys_D)[0], band] = True
    for keys_B, shared_B in zip(keys_DB, shared_DB, strict=True):
        yield list(zip(np.flatnonzero(shared_B).tolist(), keys_B[shared_B].tolist(), strict=True))


class _Kept:
    """The rows that stay by the keys that they have: of each key the first MOST_A_KEY, and which had more."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], list[int]] = defaultdict(list)
        self.full: set[tuple[int, int]] = set()

    def add(self, row: int, keys: list[tuple[int, int]]) -> None:
        for key in keys:
            if len(self.rows[key]) < MOST_A_KEY:
                self.rows[key].append(row)
            else:
                self.full.add(key)

    def candidates(self, keys: list[tuple[int, int]]) -> np.ndarray:
        """The rows that share a key, each once, in their order."""
        found = set().union(*(self.rows[key] for key in keys))
        return np.array(sorted(found), dtype=np.int64)


class Asked(NamedTuple):
    """A document that is compared with others."""

    places: np.ndarray
    """Of those of its shingles that the others know, among all that they do."""
    size: int
    """Of its shingles, known or not."""
    signature_K: np.ndarray


class Compared:
    """Sets and signatures of documents, many of which another one is compared with at once.

    A few arrays: of every document 4 bytes a shingle and 4 a signature value, and 8 a distinct shingle.
    """

    def __init__(self, sets: list[np.ndarray], signatures_DK: np.ndarray, threshold: float) -> None:
        self.ends = np.cumsum([0, *map(len, sets)])
        self.known, places = np.unique(np.concatenate([np.zeros(0, np.uint64), *sets]), return_inverse=True)
        self.places = places.astype(np.int32)
        self.signatures_DK = signatures_DK
        self.least = _least_equal(threshold)

    def marks(self) -> np.ndarray:
        """What `most_similar` writes in and clears again: a byte a distinct shingle."""
        return np.zeros(len(self.known), dtype=bool)

    def of_row(self, row: int) -> Asked:
        """One of these documents itself."""
        places = self.places[self.ends[row] : self.ends[row + 1]]
        return Asked(places, len(places), self.signatures_DK[row])

    def of_set(self, shingles: np.ndarray, signature_K: np.ndarray) -> Asked:
        """Any other document."""
        return Asked(located(self.known, shingles)[1], len(shingles), signature_K)

    def most_similar(self, asked: Asked, others: np.ndarray, marks: np.ndarray) -> tuple[int, float]:
        """The most similar of the other rows, the first of equal ones, and the similarity.

        Those whose signatures say that they are far below the threshold are left out; 0 where none is left.
        """
        equal = self.signatures_DK[others] == asked.signature_K
        others = others[np.count_nonzero(equal, axis=1) >= self.least]
        if not len(others):
            return -1, 0.0
        lengths = self.ends[others + 1] - self.ends[others]
        cuts = np.flatnonzero(np.diff(np.cumsum(lengths) // _SHINGLES)) + 1
        marks[asked.places] = True
        shared = np.concatenate([self._marked(some, marks) for some in np.split(others, cuts)])
        marks[asked.places] = False
        similarity = shared / (asked.size + lengths - shared)
        best = int(similarity.argmax())
        return int(others[best]), float(similarity[best])

    def _marked(self, others: np.ndarray, marks: np.ndarray) -> np.ndarray:
        """How many shingles of each of the rows are marked."""
        begins, ends = self.ends[others], self.ends[others + 1]
        spans = zip(begins.tolist(), ends.tolist(), strict=True)
        theirs = np.concatenate([self.places[begin:end] for begin, end in spans])
        return np.add.reduceat(marks[theirs], np.cumsum(ends - begins) - (ends - begins), dtype=np.int64)


def located(known: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of `asked` are in `known`, sorted and unique, and where those lie: bool as many, int64.

    It takes a search each, where a table of `known` would be made anew for every block of rows.
    """
    places = np.searchsorted(known, asked)
    there = places < len(known)
    there[there] = known[places[there]] == asked[there]
    return there, places[there]
