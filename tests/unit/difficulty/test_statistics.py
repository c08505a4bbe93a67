import numpy as np

from bkray.difficulty import compression_ratio, rarity, sentence_length


def test_repetition_compresses_and_noise_does_not():
    noise = "".join(map(chr, np.random.default_rng(0).integers(33, 127, 500)))
    repeated, random, empty = compression_ratio(["the cat " * 60, noise, ""])
    assert repeated < 0.1
    assert random > 0.7
    assert empty == 1.0


def test_rare_tokens_are_harder():
    counts = np.array([998, 0, 0])
    common, rare = rarity(np.array([[0, 0], [0, 1]]), counts)
    assert rare > common
    np.testing.assert_allclose(common, -np.log(999 / 1001))


def test_sentences_end_at_their_marks_and_at_empty_lines():
    cases = {
        "One two three. Four? Five six!": (3 + 1 + 2) / 3,
        'He said "go on." Then he left': (4 + 3) / 2,
        "version 1.2.3 of a.b stays whole": 6,
        "A heading\n\nAnd its text\non two lines": (2 + 6) / 2,
        "说话。再说！": 1,
        " \n\n ": 0,
        "": 0,
    }
    np.testing.assert_allclose(sentence_length(list(cases)), list(cases.values()))
