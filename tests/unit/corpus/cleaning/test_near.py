"""Near-duplicates: signatures, keys, groups, and which documents go."""

import tracemalloc

import numpy as np
import pytest

from bkray.corpus.cleaning import alike, linked, near, near_duplicates, rows_per_band, sketches
from bkray.corpus.cleaning.hashing import ngrams, words
from bkray.corpus.cleaning.near import PERMUTATIONS, shingles


def texts_of(rng, count, length=60, vocabulary=3000):
    return [" ".join(f"w{i}" for i in rng.integers(0, vocabulary, length)) for _ in range(count)]


def varied(text, share, rng):
    """The text with a share of its words replaced by a word that is nowhere else."""
    changed = text.split()
    for place in rng.choice(len(changed), round(share * len(changed)), replace=False):
        changed[place] = f"new{rng.integers(1 << 40)}"
    return " ".join(changed)


def test_shingles_are_the_set_of_word_ngrams():
    text = "To be, or not to be: that is"
    pairs = {"to be", "be or", "or not", "not to", "be that", "that is"}
    assert set(shingles(words(text), 2).tolist()) == {int(shingles(words(pair), 2)[0]) for pair in pairs}
    assert len(pairs) == len(shingles(words(text), 2))
    assert shingles(words("one"), 3).tolist() == shingles(words("ONE!"), 3).tolist()
    assert shingles(words("..."), 2).tolist() != shingles(words("???"), 2).tolist()
    assert len(words("漢字かな x")) == 5


@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.8, 1.0])
def test_pairs_at_the_threshold_share_a_key_and_far_ones_hardly_ever(threshold):
    """The S-curve 1 - (1 - s^rows)^bands, met by MinHash of sets with that true similarity."""
    rng = np.random.default_rng(0)
    rows = rows_per_band(threshold)
    at = np.mean([shares_key(rng, threshold, threshold) for _ in range(100)])
    assert at >= 0.92  # expected at least 0.97, three standard errors allowed
    if threshold >= 0.5:
        expected = 1 - (1 - 0.1**rows) ** (PERMUTATIONS // rows)
        assert np.mean([shares_key(rng, 0.1, threshold) for _ in range(100)]) <= expected + 0.05


def test_every_threshold_that_a_recipe_may_ask_for_has_its_recall():
    assert not [t for t in np.linspace(0.03, 1.0, 98) if recall(t) < 0.97]
    assert recall(0.02) < 0.93


def recall(threshold):
    rows = rows_per_band(threshold)
    return 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows)


def shares_key(rng, similarity, threshold):
    size = 300
    shared = round(2 * size * similarity / (1 + similarity))
    names = [f"w{i}" for i in rng.choice(1 << 30, 2 * size - shared, replace=False)]
    keys, _ = sketches([" ".join(names[:size]), " ".join(names[size - shared :])], threshold, 1)
    return bool((keys[0] == keys[1]).any())


def test_keys_are_of_the_text_alone():
    texts = texts_of(np.random.default_rng(1), 20)
    keys, digests = sketches(texts, 0.8, 2)
    assert keys.shape == (20, PERMUTATIONS // rows_per_band(0.8))
    assert (sketches(texts[::-1], 0.8, 2)[0][::-1] == keys).all()
    assert (np.concatenate([sketches([text], 0.8, 2)[0] for text in texts]) == keys).all()
    assert (np.concatenate([sketches([text], 0.8, 2)[1] for text in texts]) == digests).all()
    assert [part.shape for part in sketches([], 0.8, 2)] == [(0, 18), (0, PERMUTATIONS)]


def test_alike_are_all_that_have_a_near_duplicate_and_few_others(monkeypatch):
    """Of many documents that share one key, which is put in by hand, four have a copy."""
    rng = np.random.default_rng(7)
    texts = texts_of(rng, 60)
    copies = [varied(text, 0.05, rng) for text in texts[:4]]
    keys, digests = sketches([*texts, *copies], 0.6, 2)
    keys[:60, 5] = 1
    expected = [*range(4), *range(60, 64)]
    assert np.flatnonzero(alike(keys, digests, 0.6)).tolist() == expected
    order = rng.permutation(64)
    assert sorted(order[alike(keys[order], digests[order], 0.6)]) == expected
    monkeypatch.setattr(near, "_PAIRED", 59)
    assert alike(keys, digests, 0.6).all()
    assert not alike(keys[:0], digests[:0], 0.6).any()


def test_linked_are_the_connected_components():
    rng = np.random.default_rng(2)
    keys = rng.integers(0, 400, (300, 3)).astype(np.uint64)
    expected = np.arange(300)
    changed = True
    while changed:
        changed = False
        for a, b in np.argwhere((keys[:, None] == keys[None]).any(-1)):
            if expected[b] > expected[a]:
                expected[b], changed = expected[a], True
    assert linked(keys).tolist() == expected.tolist()
    assert 5 < len(set(expected.tolist())) < 250
    order = rng.permutation(300)
    assert len(set(linked(keys[order]).tolist())) == len(set(expected.tolist()))


@pytest.mark.parametrize("rows", [0, 1])
def test_linked_of_hardly_any(rows):
    assert linked(np.zeros((rows, 4), np.uint64)).tolist() == list(range(rows))


def test_a_key_counts_in_its_own_band_only():
    assert linked(np.array([[1, 2], [2, 1], [3, 3]], np.uint64)).tolist() == [0, 1, 2]


def jaccard(a, b):
    shared = len(np.intersect1d(a, b))
    return shared / (len(a) + len(b) - shared)


def test_the_same_documents_go_as_by_comparing_all_pairs():
    rng = np.random.default_rng(3)
    originals = texts_of(rng, 60)
    texts = originals + [varied(t, s, rng) for t in originals for s in (0.03, 0.05, 0.1, 0.2, 0.5)]
    texts = [texts[i] for i in rng.permutation(len(texts))]
    held_out = np.arange(len(texts)) < 40
    twin, similarity, crowded = near_duplicates(texts, held_out, 0.6, 2)
    sets, kept = [shingles(words(text), 2) for text in texts], []
    for row, mine in enumerate(sets):
        close = max(((jaccard(mine, sets[other]), -other) for other in kept), default=(0.0, 0))
        goes = close[0] >= 0.6 and not held_out[row]
        assert twin[row] == (-close[1] if goes else -1), "which of two goes, or its twin, differs"
        assert similarity[row] == (close[0] if goes else 0.0)
        if not goes:
            kept.append(row)
    assert 60 < (twin >= 0).sum() < 240
    assert (twin[:40] == -1).all()
    assert not crowded.any()


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8])
def test_signatures_leave_out_what_is_far_and_nothing_that_is_at_the_threshold(threshold):
    rng = np.random.default_rng(0)

    def compared(similarity, size=300):
        shared = round(2 * size * similarity / (1 + similarity))
        names = np.unique(rng.integers(0, 1 << 60, 2 * size - shared, dtype=np.uint64))
        sets = [names[:size], names[size - shared :]]
        found = near.Compared(sets, near.signatures(sets), threshold)
        return found.most_similar(found.of_row(1), np.array([0]), found.marks())

    at = [compared(threshold) for _ in range(300)]
    assert {row for row, _ in at} == {0}
    assert [similarity for _, similarity in at] == pytest.approx([threshold] * 300, abs=0.005)
    assert {compared(threshold / 4) for _ in range(100)} == {(-1, 0.0)}


def test_long_documents_are_compared_a_few_at_a_time_and_alike(monkeypatch):
    """60 candidates of 4,000 shingles each, half of which all of them share."""
    names = np.random.default_rng(6).integers(0, 1 << 60, 2000 * 61, dtype=np.uint64)
    sets = [
        np.unique(np.concatenate([names[:2000], names[at : at + 2000]])) for at in range(0, 120_000, 2000)
    ]
    sets[40] = np.unique(np.concatenate([sets[59][:3000], names[-1000:]]))
    compared = near.Compared(sets, near.signatures(sets), 0.03)
    asked, others, marks = compared.of_row(59), np.arange(59), compared.marks()

    def found():
        tracemalloc.start()
        try:
            return compared.most_similar(asked, others, marks), tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    expected, at_once = found()
    monkeypatch.setattr(near, "_SHINGLES", 8000)
    a_few, peak = found()
    assert a_few == expected
    assert expected[0] == 40
    assert peak < at_once / 4
    assert not marks.any()


def pages(rng, count):
    """Pages of one template, whose similarity is 0.52, and after them a copy of each of the last ten."""
    common = [f"common{place}" for place in range(100)]
    made = [" ".join([*common, *map(str, rng.integers(0, 1 << 40, 45))]) for _ in range(count)]
    return made + [f"{page} more" for page in made[-10:]]


def test_a_key_proposes_so_many_and_copies_are_found_by_others(monkeypatch):
    """Which documents are not compared with all that share a key is said."""
    texts, none = pages(np.random.default_rng(4), 120), np.zeros(130, bool)
    expected, _, crowded = near_duplicates(texts, none, 0.6, 2)
    assert not crowded.any()
    proposed = []
    usual = near.Compared.most_similar
    monkeypatch.setattr(
        near.Compared,
        "most_similar",
        lambda self, asked, others, marks: proposed.append(len(others)) or usual(self, asked, others, marks),
    )
    monkeypatch.setattr(near, "MOST_A_KEY", 2)
    twin, _, crowded = near_duplicates(texts, none, 0.6, 2)
    assert twin.tolist() == expected.tolist() == [-1] * 120 + list(range(110, 120))
    assert not crowded[:3].any()
    assert crowded[60:].mean() > 0.9
    assert max(proposed) <= 2 * 32


def test_a_chain_takes_only_what_is_near_to_what_stays():
    """b is near a and c, which are far from each other: b goes, c stays."""
    a = [f"w{i}" for i in range(40)]
    b = [f"x{i}" for i in range(5)] + a[5:]
    c = b[:-6] + [f"y{i}" for i in range(6)]
    twin, *_ = near_duplicates([" ".join(a), " ".join(b), " ".join(c)], np.zeros(3, bool), 0.7, 2)
    assert twin.tolist() == [-1, 0, -1]


def test_ngrams_by_the_definition():
    hashes = np.arange(5, dtype=np.uint64)
    for n in (1, 2, 3, 5):
        windows = [ngrams(hashes[i : i + n], n)[0] for i in range(5 - n + 1)]
        assert ngrams(hashes, n).tolist() == [int(value) for value in windows]
    assert ngrams(hashes[:2], 3).tolist() == ngrams(hashes[:2], 2).tolist()
    assert ngrams(hashes[[0, 1]], 2) != ngrams(hashes[[1, 0]], 2)
