"""What is charged is for all ranks together, whichever of them charges it."""

import time

import pytest
import torch

from bkray.config import parse_recipe
from bkray.config.training import Average
from bkray.model import build_model
from bkray.training import Ledger
from bkray.training.cost.charges import Charges
from bkray.training.cost.flops import forward_cost, forward_flops
from bkray.training.cost.step_cost import StepCost
from bkray.training.metrics import StepMetrics
from bkray.training.objective import Objective
from bkray.training.parallel.world import World
from bkray.training.techniques.averaging import averaged
from bkray.training.validation import Validation

WINDOW = 24


@pytest.fixture
def charges():
    recipe = parse_recipe(
        {
            "name": "t",
            "corpus": {"kind": "docstrings"},
            "window": WINDOW,
            "model": {"kind": "resnet_bk", "d_model": 16, "n_layers": 1, "n_heads": 4},
            "training": {"tokens": 40 * WINDOW, "batch_tokens": 8 * WINDOW},
        }
    )
    model = build_model(recipe.model, 16)
    metrics = StepMetrics(torch.device("cpu"), "fp32", World(rank=1, size=4))
    made = Charges(Ledger(), WINDOW, Objective(model, recipe), metrics, forward_cost(model, WINDOW))
    made.trains(StepCost(model, WINDOW, recipe.training), optimizer_flops=1000.0)
    return made, model


def test_every_rank_keeps_an_average_and_the_update_is_theirs_together(charges):
    made, model = charges
    made.update(0.5, averaged(model, Average(decay=0.9)))
    made.update(0.25, None)
    table = made.ledger.table()
    assert table["optimizer"] == {"flops": 2 * 1000.0, "tokens": 0, "seconds": 0.75}
    assert table["averaging"]["flops"] == 3 * sum(p.numel() for p in model.parameters()) * 4


def test_a_validation_costs_the_forward_passes_that_were_made(charges):
    made, model = charges
    made.validation(Validation(loss=1.0, passed=32, depth=None), 30, time.perf_counter())
    row = made.ledger.table()["validation"]
    assert (row["flops"], row["tokens"]) == (32 * forward_flops(model, WINDOW), 30 * WINDOW)


def test_passes_and_settling_cost_three_forward_passes_a_window(charges):
    made, model = charges
    made.passes(8, 1.5)
    made.settling(4, 0.5)
    table, forward = made.ledger.table(), forward_flops(model, WINDOW)
    assert table["training"] == {"flops": 24 * forward, "tokens": 8 * WINDOW, "seconds": 1.5}
    assert table["settling"] == {"flops": 12 * forward, "tokens": 4 * WINDOW, "seconds": 0.5}
    assert made.metrics.model_flops == 24 * forward


def test_what_is_lost_is_what_was_reached_beyond_what_is_kept(charges):
    made, _ = charges
    made.update(0.0, None)
    made.lost({"total_flops": 1500.0, "tokens": 900, "seconds": 9.0}, tokens=600, seconds=5.0)
    assert made.ledger.table()["lost"] == {"flops": 500.0, "tokens": 300, "seconds": 4.0}
