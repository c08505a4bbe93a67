"""N-gram baselines: what counting alone reaches on the same windows.

    training windows ─► n-grams packed into int64 ─► sorted unique counts, one level an order
    held-out windows ─► n-grams ─► level 1 (add-one) ─► level 2 ─► … ─► P(target | context) ─► nats

Order 1 is the add-one smoothed unigram. Higher orders are interpolated Kneser-Ney (Kneser and Ney 1995; Chen
and Goodman 1999, section 4) with one discount an order: the top level counts occurrences, a lower one the
distinct left neighbours of each n-gram. A context never crosses a window's start: the first targets of a
window use the context they have, and an n-gram at a window's start, which has no left neighbour, counts as
often as it occurs there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class _Level:
    """P(w | h) = mass(h w) + backoff(h) P(w | h without its first token), for the n-grams of one order."""

    contexts: np.ndarray  # packed h, sorted
    backoff: np.ndarray  # probability that h leaves to the lower order; 1 for an unseen h
    grams: np.ndarray  # packed h w, sorted
    mass: np.ndarray  # discounted relative frequency of w after h; 0 for an unseen h w

    @classmethod
    def of(cls, grams: np.ndarray, counts: np.ndarray, vocab_size: int) -> _Level:
        """From sorted unique packed n-grams and their counts."""
        # One imagined n-gram of each count keeps the discount inside (0, 1) on the smallest corpus.
        once, twice = np.sum(counts == 1) + 1, np.sum(counts == 2) + 1
        discount = once / (once + 2 * twice)
        contexts, first, distinct = np.unique(grams // vocab_size, return_index=True, return_counts=True)
        total = np.add.reduceat(counts, first) if len(first) else counts
        mass = (counts - discount) / np.repeat(total, distinct)
        return cls(contexts, discount * distinct / total, grams, mass)

    def probability(self, grams: np.ndarray, lower: np.ndarray, vocab_size: int) -> np.ndarray:
        backoff = _look_up(self.contexts, self.backoff, grams // vocab_size, missing=1.0)
        return _look_up(self.grams, self.mass, grams, missing=0.0) + backoff * lower


@dataclass(frozen=True)
class NGramBaseline:
    """A fitted n-gram model over token ids 0 … vocab_size - 1."""

    vocab_size: int
    order: int
    unigram_V: np.ndarray
    levels: tuple[_Level, ...]  # orders 2 … order

    @classmethod
    def fit(cls, tokens_WN1: np.ndarray, vocab_size: int, order: int) -> NGramBaseline:
        """Counts the N targets of every window.

        tokens_WN1: (windows, N + 1) integer token ids; the first of a window is context only.
        Raises ValueError for an order below 1, for one whose n-grams do not fit into 63 bits, and for tokens
        that are not such a table.
        """
        if order < 1 or vocab_size**order >= 2**63:
            raise ValueError(f"order {order} with a vocabulary of {vocab_size}: 1 <= order, V**order < 2**63")
        tokens = _checked(tokens_WN1, vocab_size)
        grams, counts = np.unique(_grams(tokens, vocab_size, order), return_counts=True)
        levels: list[_Level] = []
        for length in range(order, 1, -1):
            levels.insert(0, _Level.of(grams, counts, vocab_size))
            lower = [grams % vocab_size ** (length - 1)]
            if length > 2:
                lower.append(_grams(tokens[:, : length - 1], vocab_size, length - 1))
            grams, counts = np.unique(np.concatenate(lower), return_counts=True)
        unigram_V = np.ones(vocab_size)
        unigram_V[grams] += counts
        return cls(vocab_size, order, unigram_V / unigram_V.sum(), tuple(levels))

    def probability(self, grams_ML: np.ndarray) -> np.ndarray:
        """P(last token | the tokens before it) for M n-grams of length 1 <= L <= order: (M,) float64."""
        if not 1 <= grams_ML.shape[1] <= self.order:
            raise ValueError(f"n-grams of length {grams_ML.shape[1]}: this baseline has order {self.order}")
        return self._probability(
            _packed(_checked(grams_ML, self.vocab_size), self.vocab_size), grams_ML.shape[1]
        )

    def nats(self, tokens_WN1: np.ndarray) -> float:
        """Cross-entropy in nats, summed over the N targets of every window. tokens_WN1: as for `fit`."""
        tokens = _checked(tokens_WN1, self.vocab_size)
        width = tokens.shape[1]
        starts = sum(
            self._nats(tokens[:, :length], length) for length in range(2, min(self.order, width + 1))
        )
        return starts + self._nats(tokens, self.order)

    def _nats(self, tokens: np.ndarray, length: int) -> float:
        grams, counts = np.unique(_grams(tokens, self.vocab_size, length), return_counts=True)
        return -float(counts @ np.log(self._probability(grams, length)))

    def _probability(self, grams: np.ndarray, length: int) -> np.ndarray:
        probability = self.unigram_V[grams % self.vocab_size]
        for shorter, level in enumerate(self.levels[: length - 1], start=2):
            probability = level.probability(grams % self.vocab_size**shorter, probability, self.vocab_size)
        return probability


def _checked(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    if tokens.ndim != 2 or 0 in tokens.shape or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            f"tokens of shape {tokens.shape} and type {tokens.dtype}: expected a table of integers"
        )
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise ValueError(f"token ids {tokens.min()} … {tokens.max()} do not fit a vocabulary of {vocab_size}")
    return tokens


def _grams(tokens: np.ndarray, vocab_size: int, length: int) -> np.ndarray:
    """Every n-gram of that length whose last token is a target, packed: (M,) int64."""
    if length == 1:
        return tokens[:, 1:].ravel().astype(np.int64)
    if length > tokens.shape[1]:
        return np.zeros(0, dtype=np.int64)
    return _packed(np.lib.stride_tricks.sliding_window_view(tokens, length, axis=1), vocab_size).ravel()


def _packed(grams: np.ndarray, vocab_size: int) -> np.ndarray:
    """The tokens of the last axis as digits to the base `vocab_size`: int64 of the shape before it."""
    packed = grams[..., 0].astype(np.int64)
    for place in range(1, grams.shape[-1]):
        packed = packed * vocab_size + grams[..., place]
    return packed


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray, missing: float) -> np.ndarray:
    """values[keys == wanted] for sorted `keys`; `missing` where there is no such key."""
    if not len(keys):
        return np.full(len(wanted), missing)
    index = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[index] == wanted, values[index], missing)
