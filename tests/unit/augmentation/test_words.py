"""Deletion and swap of words: keyed randomness, kept gaps, never an empty document."""

import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from bkray.augmentation import RandomDeletion, RandomSwap, build_augmentation
from bkray.config.preparation import Deletion, Swap
from bkray.corpus import DOCUMENTS, stable_id


def documents(texts):
    rows = [
        {"doc_id": stable_id("augment", i), "text": text, "source": f"s{i}", "split": "validation"}
        for i, text in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows, schema=DOCUMENTS)


NUMBERED = documents([" ".join(f"w{i}" for i in range(n)) for n in (1, 2, 3, 10, 200, 2000)])
BOTH = pytest.mark.parametrize("augmentation", [RandomDeletion, RandomSwap])


@BOTH
def test_one_row_a_row_with_its_origin(augmentation):
    result = augmentation(0.3, 7)(NUMBERED)
    assert result.schema == DOCUMENTS
    for old, new in zip(NUMBERED.to_pylist(), result.to_pylist(), strict=True):
        kind = augmentation.kind
        assert new["doc_id"] == stable_id(old["doc_id"], kind)
        assert (new["parent_id"], new["augmentation"]) == (old["doc_id"], kind)
        assert (new["source"], new["split"]) == (old["source"], old["split"])
    assert result["text"][5] != NUMBERED["text"][5]


@BOTH
def test_batches_and_order_change_nothing_but_the_seed_does(augmentation):
    whole = augmentation(0.3, 7)(NUMBERED)
    order = pa.array(np.random.default_rng(0).permutation(NUMBERED.num_rows))
    shuffled = NUMBERED.take(order)
    again = augmentation(0.3, 7)
    parts = pa.concat_tables([again(shuffled.slice(i, 1)) for i in range(shuffled.num_rows)])
    assert parts.sort_by("doc_id") == whole.sort_by("doc_id")
    assert augmentation(0.3, 8)(NUMBERED)["text"][5] != whole["text"][5]


def test_deletion_keeps_order_and_rate():
    words = RandomDeletion(0.2, 0)(NUMBERED)["text"][5].as_py().split(" ")
    numbers = [int(word[1:]) for word in words]
    assert numbers == sorted(set(numbers))
    assert len(numbers) / 2000 == pytest.approx(0.8, abs=0.04)


def test_deletion_never_empties_a_document():
    result = RandomDeletion(0.999, 0)(documents([f"a{i} b c" for i in range(100)]))
    assert all(len(text.split()) == 1 for text in result["text"].to_pylist())
    assert len({text[0] for text in result["text"].to_pylist()}) == 3


def test_deletion_leaves_the_least_number_of_words():
    texts = [" ".join(f"w{i}" for i in range(n)) for n in (1, 7, 8, 9, 200)]
    made = RandomDeletion(0.9, 0, min_words=8)(documents(texts))["text"].to_pylist()
    assert made[:3] == texts[:3]
    assert len(made[3].split()) == 8
    assert 8 <= len(made[4].split()) < 50
    free = RandomDeletion(0.1, 0)(documents(texts))["text"].to_pylist()
    assert RandomDeletion(0.1, 0, min_words=8)(documents(texts))["text"].to_pylist()[4] == free[4]


def test_swap_leaves_documents_below_the_least_number_of_words():
    texts = [" ".join(f"w{i}" for i in range(n)) for n in (2, 7, 8, 200)]
    made = RandomSwap(0.9, 0, min_words=8)(documents(texts))["text"].to_pylist()
    assert made[:2] == texts[:2]
    assert made[2:] == RandomSwap(0.9, 0)(documents(texts))["text"].to_pylist()[2:]
    assert made[2] != texts[2]


def test_deletion_keeps_line_breaks_between_the_words_that_stay():
    text = "Title words here\n\n    indented  line\nlast"
    for i, result in enumerate(RandomDeletion(0.4, 1)(documents([text] * 200))["text"].to_pylist()):
        words = [(m.group(), m.start()) for m in re.finditer(r"\S+", result)]
        assert result == result.strip(), i
        for (left, _), (right, start) in pairwise(words):
            gap = result[:start][len(result[:start].rstrip()) :]
            between = text[text.index(left) + len(left) : text.index(right)]
            gaps = re.findall(r"\s+", between)
            assert gap == max(gaps, key=lambda g: g.count("\n"))


def test_swap_moves_words_one_place_and_gaps_never():
    text = "".join(f"w{i}" + ("\n\n" if i % 7 == 0 else "  " if i % 3 else " ") for i in range(1000)).strip()
    (result,) = RandomSwap(0.3, 3)(documents([text]))["text"].to_pylist()
    assert re.findall(r"\s+", result) == re.findall(r"\s+", text)
    moves = [int(word[1:]) - i for i, word in enumerate(result.split())]
    assert Counter(map(abs, moves)).keys() == {0, 1}
    swaps = moves.count(1)
    assert swaps == moves.count(-1)
    assert swaps / 1000 == pytest.approx(0.3 / 1.3, abs=0.04)  # a swap takes two places


def test_spaces_at_the_ends_stay():
    for augmentation in (RandomDeletion(0.9, 0), RandomSwap(0.9, 0)):
        for text in augmentation(documents([" = a b = "] * 20))["text"].to_pylist():
            assert re.fullmatch(r" \S+( \S+)* ", text)


def test_built_from_the_recipe():
    deletion = build_augmentation(Deletion(kind="deletion", probability=0.25, min_words=4), seed=5)
    swap = build_augmentation(Swap(kind="swap", min_words=3), seed=6)
    assert isinstance(deletion, RandomDeletion)
    assert isinstance(swap, RandomSwap)
    assert (deletion.probability, deletion.seed, swap.probability, swap.seed) == (0.25, 5, 0.1, 6)
    assert (deletion.min_words, swap.min_words) == (4, 3)
    with pytest.raises(ValueError, match="between 0 and 1"):
        RandomDeletion(1.0, 0)
    with pytest.raises(ValueError, match="min_words 0 must be at least 1"):
        RandomSwap(0.1, 0, min_words=0)
