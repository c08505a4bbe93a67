"""Accumulation on one rank, and what the ranks of a world are given."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from bkray.config import UserError, parse_recipe
from bkray.curriculum import CurriculumSampler
from bkray.model import build_model
from bkray.training import Ledger, WindowData, train
from bkray.training.loop import TrainingRun
from bkray.training.parallel.fsdp2 import sharded_copy
from bkray.training.parallel.zero1 import divide

WINDOW, BATCH, COUNT = 24, 8, 100


def recipe(steps, **training):
    given = {"tokens": steps * BATCH * WINDOW, "batch_tokens": BATCH * WINDOW, "workers": 1, "log_every": 100}
    return parse_recipe(
        {
            "name": "t",
            "corpus": {"kind": "docstrings"},
            "window": WINDOW,
            "model": {"kind": "resnet_bk", "d_model": 32, "n_layers": 1, "n_heads": 4},
            "training": {**given, **training},
        }
    )


def parts(settings):
    """The model, windows that begin with their own number, and plain passes over them."""
    tokens = np.random.default_rng(0).integers(0, COUNT, (COUNT, WINDOW + 1)).astype(np.int32)
    tokens[:, 0] = np.arange(COUNT)
    torch.manual_seed(0)
    sampler = CurriculumSampler(np.zeros(COUNT), BATCH, settings.steps, start=1.0)
    return build_model(settings.model, COUNT), WindowData(tokens, tokens[:9]), sampler, settings


def trained(settings):
    """The trained model, how often each window went through it, and the result."""
    model, *others = parts(settings)
    seen = np.zeros(COUNT, dtype=int)

    def note(module, arguments):
        if module.training and torch.is_grad_enabled():
            np.add.at(seen, arguments[0][:, 0].numpy(), 1)

    model.register_forward_pre_hook(note)
    return model, seen, train(model, *others, ledger=Ledger())


def test_accumulated_passes_lose_no_tail_and_train_alike():
    """13 steps of 8 see 100 windows once and 4 twice; in three uneven micro-batches they give the same."""
    whole, seen, result = trained(recipe(13))
    again, seen_again, result_again = trained(recipe(13, accumulate=3))
    for one in (seen, seen_again):
        assert np.bincount(one).tolist() == [0, 96, 4]
    assert result_again.unique_tokens == COUNT * WINDOW
    assert result_again.loss == pytest.approx(result.loss, abs=1e-6)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def most_kept(settings):
    """The most bytes that are kept for backward passes at any time of a step."""
    run = TrainingRun(*parts(settings), None, Ledger(), None)
    kept = {"now": 0, "most": 0}

    def keep(tensor):
        kept["now"] += tensor.nbytes
        kept["most"] = max(kept.values())
        return tensor

    def give(tensor):
        kept["now"] -= tensor.nbytes
        return tensor

    with saved_tensors_hooks(keep, give):
        run.backward(run.draw())
    return kept["most"]


def test_micro_batches_keep_less():
    assert most_kept(recipe(1, accumulate=4)) < 0.5 * most_kept(recipe(1))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_every_rank_gets_as_much_state(size):
    matrices, others = [36864] * 12 + [147456] * 8, [786432, 192, 192, 1]
    owners, cuts = divide(matrices, others, size)
    assert [sum(cut) for cut in cuts] == others
    held = np.zeros(size, dtype=int)
    np.add.at(held, owners, matrices)
    held += 2 * np.sum(cuts, axis=0)
    assert held.max() <= (1 / size) * held.sum() + 2 * 16
    assert all(count >= 0 for cut in cuts for count in cut)


def test_one_large_matrix_goes_whole_and_the_rest_to_the_others():
    owners, cuts = divide([10_000, 1000], [600], 3)
    assert owners == [0, 1]
    assert cuts == [[0, 64, 536]]


@pytest.mark.parametrize("elements", [[976, 16], [1000, 37], [5, 3]])
def test_adamw_on_the_pieces_has_the_bits_of_adamw_on_the_whole(elements):
    """Its fused kernel takes a vector at a time and the rest of a tensor one by one, otherwise rounded."""
    _, cuts = divide([], elements, 3)

    def trained(cuts):
        torch.manual_seed(0)
        tensors = [torch.randn(count) for count in elements]
        pieces = [
            nn.Parameter(piece.clone())
            for whole, cut in zip(tensors, cuts, strict=True)
            for piece in whole.split(cut)
        ]
        optimizer = torch.optim.AdamW(pieces, lr=1e-2, weight_decay=0.1, fused=True)
        for _ in range(30):
            gradients = [torch.randn(count) for count in elements]
            parts = [part for each, cut in zip(gradients, cuts, strict=True) for part in each.split(cut)]
            for piece, part in zip(pieces, parts, strict=True):
                piece.grad = part.clone()
            optimizer.step()
        return torch.cat([piece.detach() for piece in pieces])

    assert torch.equal(trained(cuts), trained([[count] for count in elements]))


def test_a_world_larger_than_the_model_has_ranks_without_a_piece():
    owners, cuts = divide([4], [1], 4)
    assert (owners, cuts) == ([0], [[0, 1, 0, 0]])


def test_fsdp2_names_a_number_that_it_cannot_divide():
    model = nn.Linear(2, 2)
    model.temperature = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(UserError, match="cannot divide parameter temperature, a single number"):
        sharded_copy(model)
