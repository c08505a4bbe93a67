"""Quality by likeness to a trusted sample: two scores of hashed n-grams that counting alone gives.

    pool ─► unigram counts ─┐
    sample ─► n-gram counts ┴─► scores: domain and order of each document ─► z ─► the lower one ─► threshold

domain: mean over the tokens of log P(w) / Q(w), P the sample's unigrams, Q the pool's: the importance weight
        of DSIR (Xie et al. 2023, arXiv 2302.03169), Moore and Lewis' difference (2010) of unigram models.
order:  mean of log P(w | v) / P(w), v the token before: how far the sample's bigrams know the order. Low for
        shuffled words, which `domain` cannot see.

P(w) and P(w | v) are smoothed by a Dirichlet prior, Q(w) and P(w) (MacKay and Peto 1995).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bkray.corpus.cleaning.hashing import ngrams, tokens

SCORES = ("domain", "order")
_UNIGRAMS, _BIGRAMS = 1 << 16, 1 << 22  # buckets
_UNIGRAM_PRIOR, _BIGRAM_PRIOR = 30_000, 100  # tokens that a prior weighs as much as
_FOLDS = 10
_BEGINNING = np.array([1], dtype=np.uint64)  # before a text's first token


@dataclass(frozen=True)
class Counts:
    """How often each bucket of tokens, and of pairs of a token and the one before it, was seen."""

    unigrams_U: np.ndarray
    bigrams_B: np.ndarray

    def without(self, part: Counts) -> Counts:
        """The counts of the rest, scaled to as many tokens: the priors weigh as much as in the whole."""
        scale = self.unigrams_U.sum() / (self.unigrams_U.sum() - part.unigrams_U.sum())
        return Counts(scale * (self.unigrams_U - part.unigrams_U), scale * (self.bigrams_B - part.bigrams_B))


def count(texts: Iterable[str]) -> Counts:
    """Counts of all tokens and bigrams: int64 of 65,536 and 4,194,304 buckets."""
    counts = Counts(np.zeros(_UNIGRAMS, np.int64), np.zeros(_BIGRAMS, np.int64))
    for text in texts:
        unigrams, bigrams = _buckets(text)
        np.add.at(counts.unigrams_U, unigrams, 1)
        np.add.at(counts.bigrams_B, bigrams, 1)
    return counts


def count_unigrams(texts: Iterable[str]) -> np.ndarray:
    """`count(texts).unigrams_U`, at a fraction of its cost."""
    unigrams_U = np.zeros(_UNIGRAMS, np.int64)
    for text in texts:
        np.add.at(unigrams_U, _buckets(text)[0], 1)
    return unigrams_U


def _buckets(text: str) -> tuple[np.ndarray, np.ndarray]:
    """The bucket of the beginning and of each token (n + 1,), and of each bigram (n,)."""
    sequence = np.concatenate([_BEGINNING, tokens(text)])
    bigrams = ngrams(sequence, 2)
    return (sequence % _UNIGRAMS).astype(np.int64), (bigrams >> 42).astype(np.int64)


def _unigram_model(sample_U: np.ndarray, pool_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P(w) and log P(w) / Q(w) of every bucket, from the counts of the sample and of the pool."""
    pool_U = (pool_U + 1) / (pool_U + 1).sum()
    prior_U = sample_U + _UNIGRAM_PRIOR * pool_U
    sample_U = prior_U / prior_U.sum()
    return sample_U, np.log(sample_U / pool_U)


def likeness(texts: Sequence[str], sample_U: np.ndarray, pool_U: np.ndarray) -> np.ndarray:
    """`domain` alone of each text, by unigram counts of the sample and of the pool: (D,) nats."""
    _, domain_U = _unigram_model(sample_U, pool_U)
    return np.array([domain_U[_buckets(text)[0][1:]].mean() for text in texts])


def scores(texts: Sequence[str], sample: Counts, pool_U: np.ndarray) -> np.ndarray:
    """`domain` and `order` of each text, by the sample's counts and the pool's unigrams: (D, 2) nats."""
    sample_U, domain_U = _unigram_model(sample.unigrams_U, pool_U)
    found = np.empty((len(texts), 2))
    for row, text in enumerate(texts):
        unigrams, bigrams = _buckets(text)
        before, here = unigrams[:-1], unigrams[1:]
        seen = sample.bigrams_B[bigrams] + _BIGRAM_PRIOR * sample_U[here]
        conditional = seen / (sample.unigrams_U[before] + _BIGRAM_PRIOR)
        found[row] = domain_U[here].mean(), np.log(conditional / sample_U[here]).mean()
    return found


@dataclass(frozen=True)
class QualityFilter:
    """What `fit` learned from a trusted sample and a pool; 33 MB, of which the bigrams are 32."""

    sample: Counts
    pool_U: np.ndarray
    mean_S: np.ndarray
    deviation_S: np.ndarray
    threshold: float
    """The lowest quality that is kept."""

    @classmethod
    def fit(cls, sample: Sequence[str], pool_U: np.ndarray, lose: float) -> QualityFilter:
        """Set the threshold so that a share `lose` of the sample would itself be lost.

        The sample's texts are scored by counts of the others: ten folds of neighbours, since texts that lie
        beside each other often come from one source. `pool_U` are the unigram counts of the pool; the
        sample's join them, so that Q knows the words of both. ValueError for fewer texts than folds.
        """
        if len(sample) < _FOLDS:
            raise ValueError(f"a sample of {len(sample)} texts: at least {_FOLDS} are needed")
        whole, edges = count(sample), np.linspace(0, len(sample), _FOLDS + 1).astype(int)
        pool_U = pool_U + whole.unigrams_U
        folds = [sample[start:stop] for start, stop in pairwise(edges)]
        scored = np.concatenate([scores(fold, whole.without(count(fold)), pool_U) for fold in folds])
        mean_S, deviation_S = scored.mean(axis=0), np.maximum(scored.std(axis=0), 1e-6)
        quality = ((scored - mean_S) / deviation_S).min(axis=1)
        return cls(whole, pool_U, mean_S, deviation_S, float(np.quantile(quality, lose)))

    def z(self, texts: Sequence[str]) -> np.ndarray:
        """Both scores in deviations from the sample's mean: (D, 2); a text's quality is the lower of them."""
        return (scores(texts, self.sample, self.pool_U) - self.mean_S) / self.deviation_S
