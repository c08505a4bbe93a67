"""Gradual unfreezing: every phase is a run with so many frozen layers, and follows from the step alone."""

import shutil

import numpy as np
import pytest
import torch

from bkray.config import UserError, parse_recipe
from bkray.config.savings import Unfreeze
from bkray.curriculum import CurriculumSampler
from bkray.model import build_model
from bkray.reporting import RunLog
from bkray.training import Checkpointer, Ledger, WindowData, train
from bkray.training.loop import TrainingRun
from bkray.training.optimization.optimizers import optimizers_of

VOCABULARY, WINDOW, BATCH, STEPS = 16, 10, 4, 10
DATA = np.random.default_rng(0).integers(0, VOCABULARY, (24, WINDOW + 1)).astype(np.int32)
PHASES = [2, 2, 2, 1, 1, 1, 0, 0, 0, 0]
"""Frozen layers of three at every step, with `at` of `recipe`."""


def recipe(**training):
    settings = {"tokens": STEPS * BATCH * WINDOW, "batch_tokens": BATCH * WINDOW, "workers": 1, "lr": 1e-2}
    settings |= {"start_from": "unread", "unfreeze": {"at": [0.3, 0.6]}, "eval_every": 50}
    settings |= {"checkpoint_every": 1, "keep_checkpoints": 9}
    return parse_recipe(
        {
            "name": "t",
            "corpus": {"kind": "docstrings"},
            "window": WINDOW,
            "model": {"kind": "resnet_bk", "d_model": 16, "n_layers": 3, "n_heads": 4},
            "training": settings | training,
        }
    )


def parts(settings):
    torch.manual_seed(0)
    model = build_model(settings.model, VOCABULARY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    sampler = CurriculumSampler(np.zeros(len(DATA)), BATCH, settings.steps, start=1.0, seed=0)
    return model, WindowData(DATA, DATA[:5]), sampler, settings


def started(settings):
    return TrainingRun(*parts(settings), None, Ledger(), None)


def frozen_names(model, layers):
    prefixes = ("embedding.", *(f"blocks.{layer}." for layer in range(layers)))
    return {name for name, _ in model.named_parameters() if layers and name.startswith(prefixes)}


def with_state(run):
    """The parameters that the optimizer keeps something of, by name."""
    kept = {id(parameter) for one in optimizers_of(run.optimizer) for parameter in one.state}
    return {name for name, parameter in run.model.named_parameters() if id(parameter) in kept}


def test_the_phases_are_shares_of_the_steps():
    unfreeze = Unfreeze(at=(0.25, 0.5, 0.9))
    assert unfreeze.begins(20) == [5, 10, 18]
    assert [unfreeze.frozen(step, 20) for step in (0, 4, 5, 9, 10, 17, 18, 19)] == [3, 3, 2, 2, 1, 1, 0, 0]


@pytest.mark.parametrize(
    "training",
    [{}, {"optimizer": "adamw"}, {"unfreeze": None, "freeze": 2}],
    ids=["unfreeze", "unfreeze, adamw", "freeze"],
)
def test_what_is_frozen_has_no_gradient_no_state_and_its_weights(training):
    run = started(recipe(**training))
    begin = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
    for step in range(STEPS):
        layers = 2 if run.recipe.training.freeze else PHASES[step]
        frozen = frozen_names(run.model, layers)
        run.unfreeze()
        run.backward(run.batches.take(step))
        for name, parameter in run.model.named_parameters():
            assert (parameter.grad is None) == (name in frozen), name
        run.optimizer.zero_grad(set_to_none=True)
        run.train_step()
        assert with_state(run) == begin.keys() - frozen
        for name, parameter in run.model.named_parameters():
            assert torch.equal(parameter, begin[name]) == (name in frozen), name


def test_the_first_phase_is_the_run_with_these_layers_frozen_and_costs_the_same():
    run, frozen = started(recipe()), started(recipe(unfreeze=None, freeze=2))
    for _ in range(3):
        run.train_step()
        frozen.train_step()
    for one, other in zip(run.model.parameters(), frozen.model.parameters(), strict=True):
        assert torch.equal(one, other)
    for kind in ("training", "optimizer"):
        assert run.ledger.table()[kind]["flops"] == frozen.ledger.table()[kind]["flops"] > 0


def test_every_step_costs_what_one_with_as_many_frozen_layers_does():
    def costs(settings):
        run, spent = started(settings), []
        for _ in range(STEPS):
            before = run.ledger.total_flops
            run.train_step()
            spent.append(run.ledger.total_flops - before)
        return spent

    constant = [costs(recipe(unfreeze=None, freeze=layers))[0] for layers in (None, 1, 2)]
    assert constant[0] > constant[1] > constant[2]
    assert costs(recipe()) == [pytest.approx(constant[layers]) for layers in PHASES]


def finished(folder, **training):
    settings = recipe(average={"decay": 0.9}, token_selection={"kind": "random"}, **training)
    given, ledger = parts(settings), Ledger()
    train(*given, ledger=ledger, checkpointer=Checkpointer(folder, "key", 9))
    return given[0], {kind: row["flops"] for kind, row in ledger.table().items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return *finished(folder), folder


@pytest.mark.parametrize("step", [2, 3, 7])
def test_a_resumed_run_ends_with_the_same_bits_whatever_the_phase(whole, tmp_path, step):
    """Steps 3 and 6 begin phases: a run goes on from before, at and after them."""
    model, costs, folder = whole
    name = f"step-{step:08d}"
    shutil.copytree(folder / name, tmp_path / name)
    again, charged = finished(tmp_path)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    assert charged == costs


@pytest.mark.parametrize("step", [2, 3, 7, None])
def test_the_activation_cache_changes_no_bit_over_the_phases(whole, tmp_path, step):
    """Whether the run with the cache is made at once or goes on from a step before, at or after a phase."""
    model, costs, folder = whole
    if step:
        shutil.copytree(folder / f"step-{step:08d}", tmp_path / f"step-{step:08d}")
    cached, charged = finished(tmp_path, activation_cache={})
    for one, other in zip(model.parameters(), cached.parameters(), strict=True):
        assert torch.equal(one, other)
    assert charged["training"] <= costs["training"]


def test_each_phase_keeps_its_own_and_the_last_nothing(tmp_path):
    """Twelve windows are three steps, the length of the first two phases, twice over with twice the steps."""
    settings = recipe(activation_cache={}, tokens=2 * STEPS * BATCH * WINDOW, log_every=1)
    model, _, _, _ = parts(settings)
    sampler = CurriculumSampler(np.zeros(12), BATCH, settings.steps, start=1.0, seed=0)
    train(model, WindowData(DATA[:12], DATA[:5]), sampler, settings, reporter=RunLog(tmp_path / "log"))
    reused = [line["activations_reused"] for line in RunLog.read(tmp_path / "log")]
    assert reused == 2 * [0.0, 0.0, 0.0, 1.0, 1.0, 1.0] + 8 * [0.0]


@pytest.mark.parametrize(
    ("training", "fault"),
    [
        ({"unfreeze": {"at": [0.1, 0.2, 0.3]}}, r"unfreeze of 3 layers is too many: at most 2"),
        ({"unfreeze": {"at": [0.6, 0.3]}}, r"\[0.6, 0.3\] are the steps \[6, 3\] of 10: let them rise"),
        ({"unfreeze": {"at": [0.5, 1.0]}}, r"the first and the last too, has a step"),
        ({"unfreeze": {"at": [0.01]}}, r"are the steps \[0\] of 10"),
        ({"unfreeze": {"at": []}}, r"training.unfreeze.at"),
        ({"start_from": None}, r"would freeze untrained layers: set training.start_from"),
        ({"compile": True}, r"training.compile cannot take training.unfreeze of 2 layers"),
        ({"freeze": 1}, r"cannot take training.freeze, whose layers are frozen for good: remove one"),
        ({"gradient_cache": {"kind": "every"}}, r"cannot take training.gradient_cache"),
        (
            {"workers": 2, "gradient_compression": "powersgd"},
            r"powersgd, which keeps errors .* set it to fp16 or bf16",
        ),
        ({"workers": 2, "parallel": "fsdp2"}, r"training.unfreeze cannot take training.parallel fsdp2"),
    ],
)
def test_what_cannot_be_unfrozen_is_refused(training, fault):
    with pytest.raises(UserError, match=fault):
        recipe(**training)
