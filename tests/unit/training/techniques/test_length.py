"""The length curriculum: shorter pieces first, every target once, the same tokens a batch."""

import numpy as np
import torch

from bkray.config import parse_recipe
from bkray.config.savings import Length
from bkray.curriculum import CurriculumSampler
from bkray.model import build_model
from bkray.reporting import RunLog
from bkray.training import Ledger, WindowData, train
from bkray.training.cost.flops import forward_flops
from bkray.training.objective import Objective, token_losses
from bkray.training.techniques.length import length_at, pieces

VOCABULARY, WINDOW, BATCH, STEPS = 16, 24, 4, 20
DATA = np.add.outer(np.arange(64), 3 * np.arange(WINDOW + 1)).astype(np.int32) % VOCABULARY


def recipe(**training):
    settings = {"tokens": STEPS * BATCH * WINDOW, "batch_tokens": BATCH * WINDOW, "workers": 1, "lr": 1e-2}
    return parse_recipe(
        {
            "name": "t",
            "corpus": {"kind": "docstrings"},
            "window": WINDOW,
            "model": {"kind": "transformer", "d_model": 16, "n_layers": 1, "n_heads": 2},
            "training": {**settings, "log_every": 1, "eval_every": 50, "checkpoint_every": 7, **training},
        }
    )


def trained(settings, **parts):
    torch.manual_seed(0)
    model = build_model(settings.model, VOCABULARY)
    sampler = CurriculumSampler(np.zeros(len(DATA)), BATCH, settings.steps, start=1.0, seed=0)
    return model, train(model, WindowData(DATA, DATA[:5]), sampler, settings, **parts)


def test_pieces_hold_every_target_once_after_what_comes_before_it():
    tokens = torch.arange(2 * (WINDOW + 1)).view(2, WINDOW + 1)
    cut = pieces(tokens, 6)
    assert cut.shape == (8, 7)
    assert torch.equal(cut[:, 1:].reshape(2, WINDOW), tokens[:, 1:])
    assert torch.equal(cut[:, :-1].reshape(2, WINDOW), tokens[:, :-1])
    assert torch.equal(pieces(tokens, WINDOW), tokens)


def test_the_length_doubles_in_equal_parts_and_stays_whole():
    length = Length(start=3, until=0.6)
    taken = [length_at(step / 20, length, WINDOW) for step in range(20)]
    assert taken == 4 * [3] + 4 * [6] + 4 * [12] + 8 * [24]
    assert length_at(0.999, Length(start=12, until=1.0), WINDOW) == 12


def test_a_pass_gives_the_losses_of_the_pieces_at_the_places_of_their_targets():
    objective = Objective(build_model(recipe().model, VOCABULARY), recipe(length={"start": 6}))
    tokens = torch.from_numpy(DATA[:3]).long()
    objective.begin(0)
    losses = objective(tokens)
    for window in range(3):
        for first in range(0, WINDOW, 6):
            piece = tokens[window : window + 1, first : first + 7]
            expected = token_losses(objective.network(piece[:, :-1]), piece[:, 1:])[0]
            torch.testing.assert_close(losses[window, first : first + 6], expected)


def test_it_learns_is_logged_and_charged_by_the_lengths_it_computed(tmp_path):
    ledgers = [Ledger(), Ledger()]
    model, _ = trained(recipe(), ledger=ledgers[0])
    settings = recipe(length={"start": 6, "until": 0.5})
    _, result = trained(settings, ledger=ledgers[1], reporter=RunLog(tmp_path / "log"))
    lines = RunLog.read(tmp_path / "log")
    assert [line["length"] for line in lines] == 5 * [6] + 5 * [12] + 10 * [24]
    assert lines[0]["loss"] > 2.5
    assert result.validation_loss < 2
    plain, cut = (ledger.table() for ledger in ledgers)
    cost = {n: 3 * BATCH * (WINDOW // n) * forward_flops(model, n) for n in (6, 12, 24)}
    assert cut["training"]["flops"] == 5 * cost[6] + 5 * cost[12] + 10 * cost[24]
    assert cut["training"]["flops"] < plain["training"]["flops"]
    assert cut["training"]["tokens"] == plain["training"]["tokens"]
    assert cut["validation"] == {**plain["validation"], "seconds": cut["validation"]["seconds"]}
