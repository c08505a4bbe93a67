"""Likeness to a trusted sample: what the two scores see, and where the threshold lies."""

from itertools import pairwise

import numpy as np
import pytest

from bkray.corpus.cleaning import QualityFilter, count, count_unigrams, likeness
from bkray.corpus.cleaning.hashing import tokens
from bkray.corpus.cleaning.quality import scores
from bkray.corpus.contamination import boilerplate


def prose(rng, words=60, offset=0):
    """Text in which each word has a few possible successors; another offset has other words."""
    place, chosen = int(rng.integers(200)), []
    for _ in range(words):
        chosen.append(f"w{offset + place}")
        place = (place * 7 + int(rng.integers(5))) % 200
    return " ".join(chosen)


def shuffled(text, rng):
    return " ".join(rng.permutation(text.split()))


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return {
        "sample": [prose(rng) for _ in range(300)],
        "clean": [prose(rng) for _ in range(200)],
        "shuffled": [shuffled(prose(rng), rng) for _ in range(100)],
        "elsewhere": [prose(rng, offset=150) for _ in range(100)],
        "boilerplate": [boilerplate(rng) for _ in range(50)],
    }


@pytest.fixture(scope="module")
def fitted(texts):
    pool = [text for name in ("clean", "shuffled", "elsewhere", "boilerplate") for text in texts[name]]
    return QualityFilter.fit(texts["sample"], count_unigrams(pool), 0.05)


def test_scores_by_their_definition():
    """The formulas of the module, with dictionaries instead of buckets."""
    sample, pool, text = ["a b c a b", "a c"], ["a b", "d a"], "a b d"
    pool_U = count_unigrams(pool)
    ((domain, order),) = scores([text], count(sample), pool_U)
    tokens_of = [["", *t.split()] for t in sample]
    seen = [w for t in tokens_of for w in t]
    pairs = [pair for t in tokens_of for pair in pairwise(t)]
    in_pool = [w for t in pool for w in ["", *t.split()]]
    q = {w: (in_pool.count(w) + 1) / (len(in_pool) + 2**16) for w in ("a", "b", "d")}
    p = {w: (seen.count(w) + 30_000 * q[w]) / (len(seen) + 30_000) for w in q}
    steps = [("", "a"), ("a", "b"), ("b", "d")]
    conditional = {s: (pairs.count(s) + 100 * p[s[1]]) / (seen.count(s[0]) + 100) for s in steps}
    assert domain == pytest.approx(np.mean([np.log(p[w] / q[w]) for w in q]))
    assert order == pytest.approx(np.mean([np.log(conditional[s] / p[s[1]]) for s in steps]))


def test_shuffled_words_fall_by_order_other_words_and_boilerplate_by_domain(texts, fitted):
    z = {name: fitted.z(texts[name]) for name in texts}
    assert (z["shuffled"].min(axis=1) < fitted.threshold).mean() >= 0.98
    assert (z["shuffled"].argmin(axis=1) == 1).all()
    for name in ("elsewhere", "boilerplate"):
        assert (z[name].min(axis=1) < fitted.threshold).mean() >= 0.98
        assert (z[name][:, 0] < fitted.threshold).mean() >= 0.98
    assert (z["clean"].min(axis=1) >= fitted.threshold).mean() >= 0.85


def test_the_domain_does_not_see_the_order(texts, fitted):
    rng = np.random.default_rng(1)
    originals = texts["clean"]
    copies = [shuffled(text, rng) for text in originals]
    assert fitted.z(copies)[:, 0] == pytest.approx(fitted.z(originals)[:, 0])
    assert (fitted.z(copies)[:, 1] < fitted.z(originals)[:, 1] - 1).all()


@pytest.mark.parametrize(("lose", "tolerance"), [(0.02, 0.7), (0.2, 0.35), (0.5, 0.2)])
def test_the_threshold_loses_that_share_of_text_like_the_sample(texts, lose, tolerance):
    """Of a pool that the sample's counts have not seen; the sample itself must not look better than it is."""
    rng = np.random.default_rng(2)
    sample, pool = ([prose(rng) for _ in range(count)] for count in (1000, 2000))
    fitted = QualityFilter.fit(sample, count_unigrams(pool + texts["shuffled"]), lose)
    fresh = fitted.z(pool).min(axis=1) < fitted.threshold
    assert fresh.mean() == pytest.approx(lose, rel=tolerance)
    own = fitted.z(sample).min(axis=1) < fitted.threshold
    assert own.mean() < 0.8 * lose, "the sample is scored by counts that include it"


def test_a_text_is_scored_by_itself(texts, fitted):
    together = fitted.z(texts["clean"])
    assert (np.concatenate([fitted.z([text]) for text in texts["clean"]]) == together).all()
    assert np.isfinite(fitted.z(["", "?", "one", "\u200b", "word " * 20_000])).all()


def test_counts_add_up(texts):
    whole, part = count(texts["sample"]), count(texts["sample"][:100])
    rest = count(texts["sample"][100:])
    left = whole.without(part)
    scale = whole.unigrams_U.sum() / rest.unigrams_U.sum()
    assert left.unigrams_U == pytest.approx(scale * rest.unigrams_U)
    assert (left.bigrams_B[rest.bigrams_B > 0] == scale * rest.bigrams_B[rest.bigrams_B > 0]).all()
    assert left.bigrams_B.sum() == pytest.approx(whole.bigrams_B.sum(), rel=0.01)
    assert whole.bigrams_B.sum() == sum(len(tokens(text)) for text in texts["sample"])
    assert (count_unigrams(texts["sample"]) == whole.unigrams_U).all()


def test_too_few_texts():
    with pytest.raises(ValueError, match="a sample of 9 texts"):
        QualityFilter.fit(["a"] * 9, count_unigrams(["a"]), 0.05)


def test_likeness_is_the_score_of_the_domain_without_bigrams(texts):
    sample, pool_U = count(texts["sample"]), count_unigrams(texts["elsewhere"])
    given = [*texts["clean"][:5], *texts["elsewhere"][:5]]
    found = likeness(given, sample.unigrams_U, pool_U)
    assert (found == scores(given, sample, pool_U)[:, 0]).all()
    assert found[:5].min() > found[5:].max()
