"""How the stage of augmentation is cut into blocks: shared evenly, none of them longer than it may take."""

import pytest

from bkray.config import Recipe
from bkray.runtime.prepare import block_rows

SWAP, TRANSLATION = {"kind": "swap"}, {"kind": "back_translation"}
STALLED_S, SLOW = 300, 600  # bytes a second: a hundred words, a fiftieth of Apertium on one core


def recipe(*kinds):
    corpus = {"kind": "text", "path": "x"}
    return Recipe.model_validate({"name": "t", "corpus": corpus, "augmentation": list(kinds)})


@pytest.mark.parametrize("document", [1000, 20_000, 500_000])
def test_a_block_of_translation_is_done_before_the_stage_passes_for_stalled(document):
    rows = block_rows(recipe(SWAP, TRANSLATION), 10_000, 10_000 * document, cpus=2)
    assert rows == 1 or rows * document / SLOW < STALLED_S
    assert rows <= block_rows(recipe(SWAP), 10_000, 10_000 * document, cpus=2)


def test_few_documents_are_shared_and_many_cut():
    assert block_rows(recipe(SWAP), 64 * 16, 64 * 16 * 1000, cpus=2) == 64
    assert block_rows(recipe(SWAP), 100, 100_000, cpus=2) == 32
    assert block_rows(recipe(SWAP), 1_000_000, 10**9, cpus=2) == 256
    assert block_rows(recipe(SWAP), 10, 10 * (64 << 20), cpus=2) == 1
