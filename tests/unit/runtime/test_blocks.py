"""How stages are cut into blocks: shared evenly, none of them longer than it may take."""

import pytest

from bkray.config import Recipe
from bkray.runtime.prepare import block_rows
from bkray.runtime.stages import windows_a_block

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


@pytest.mark.parametrize("flops", [0.0, 1e6, 1e9, 1e10, 1e13])
def test_a_block_of_windows_is_done_by_a_slow_core_before_the_stage_passes_for_stalled(flops):
    rows = windows_a_block(flops)
    assert rows == 1 or rows * flops / 1e9 < STALLED_S
    assert rows == 128 or (rows + 1) * flops / 1e11 > 1, "not so short that its start takes as long"
    assert rows <= windows_a_block(flops, gpus=1) <= 128
    whole = windows_a_block(flops, together=48)
    assert whole % 48 == 0
    assert whole == 48 or whole <= rows
