"""Divergence: the batch is saved, and the run stops, skips the step or falls back, as the recipe says."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from bkray.config import UserError, parse_recipe
from bkray.curriculum import CurriculumSampler, DifficultyAdjuster
from bkray.model import ResNetBK, ResNetBKConfig
from bkray.reporting import RunLog
from bkray.training import Checkpointer, Ledger, WindowData, train
from bkray.training.divergence.recovery import scaled_rates
from bkray.training.objective import token_losses

VOCAB, WINDOW, STEPS = 16, 8, 30
BAD = 77  # the window that the model cannot take


def recipe(on_divergence=None, **training):
    settings = {"tokens": STEPS * 8 * WINDOW, "batch_tokens": 8 * WINDOW, "workers": 1, "warmup": 0.0}
    often = {"checkpoint_every": 7, "eval_every": 5, "log_every": 1, "optimizer": "adamw", "lr": 0.03}
    often["schedule"] = "constant"
    chosen = {**settings, **often, "on_divergence": on_divergence, **training}
    return parse_recipe({"name": "t", "corpus": {"kind": "docstrings"}, "window": WINDOW, "training": chosen})


class Table(nn.Module):
    """The next token by the last one; a window that begins with the last token of all gets `poison`."""

    def __init__(self, poison=math.nan):
        super().__init__()
        self.table = nn.Embedding(VOCAB, VOCAB)
        self.dropout = nn.Dropout(0.1)
        self.poison = poison

    def forward(self, tokens_BN):
        logits_BNV = self.dropout(self.table(tokens_BN))
        bad_B = tokens_BN[:, 0] == VOCAB - 1
        return logits_BNV + torch.where(bad_B, self.poison, 0.0)[:, None, None]


@pytest.fixture
def data():
    starts = np.random.default_rng(0).integers(0, VOCAB - 1, (200, 1))
    windows = ((starts + np.arange(WINDOW + 1)) % (VOCAB - 1)).astype(np.int32)
    windows[BAD, 0] = VOCAB - 1
    return WindowData(windows, windows[:20])


@pytest.fixture
def healthy(data):
    return WindowData(data.train[:BAD], data.validation)


def run(settings, data, model=None, **parts):
    torch.manual_seed(0)
    model = model or Table()
    return model, train(model, data, sampler(settings, data), settings, **parts)


def sampler(settings, data):
    return CurriculumSampler(np.zeros(len(data.train)), 8, settings.steps, start=1.0)


def bad_steps(settings, data):
    drawn = sampler(settings, data)
    return [step for step in range(settings.steps) if BAD in drawn.ids(step)]


def test_by_default_the_run_stops_and_the_batch_is_there_to_look_at(data, tmp_path):
    settings = recipe()
    (step, *_) = bad_steps(settings, data)
    folder = tmp_path / "checkpoints"
    said = rf"diverged at step {step}: loss nan.*diverged-step-{step}-rank-0.pt"
    with pytest.raises(UserError, match=said):
        run(settings, data, checkpointer=Checkpointer(folder, "key"))
    batch = torch.load(folder / f"diverged-step-{step}-rank-0.pt", weights_only=True)
    ids = sampler(settings, data).ids(step)
    assert np.array_equal(batch["ids"], ids)
    assert np.array_equal(batch["tokens"], data.train[ids])
    assert batch["window_losses"].isnan().tolist() == [window == BAD for window in ids]
    assert (batch["step"], batch["first_not_finite"]) == (step, "the loss")
    replayed, _ = run(recipe(tokens=step * 8 * WINDOW), data)  # up to where it diverged
    torch.set_rng_state(batch["rng"])
    replayed.train()
    with torch.no_grad():
        losses_BN = token_losses(replayed(batch["tokens"][:, :-1]), batch["tokens"][:, 1:])
    torch.testing.assert_close(losses_BN.mean(1), batch["window_losses"], rtol=0, atol=0, equal_nan=True)


class Burst(Table):
    """The gradient of its last parameter is not finite, though its loss is."""

    def __init__(self):
        super().__init__()
        self.last = nn.ParameterList([torch.zeros(1)])

    def forward(self, tokens_BN):
        return super().forward(tokens_BN) + self.last[0].sqrt() * 0.0


def test_what_is_not_finite_is_named_before_the_gradient_is_clipped(healthy):
    with pytest.raises(UserError, match=r"loss \d\.\d+, gradient norm nan, first at last.0;"):
        run(recipe(), healthy, Burst())


@pytest.mark.parametrize("adjuster", [None, DifficultyAdjuster()])
def test_a_validation_loss_that_is_not_finite_ends_the_run(data, adjuster):
    spoilt = WindowData(data.train[:BAD], data.train[BAD : BAD + 1])
    with pytest.raises(UserError, match=r"validation loss nan at step 5: training.lr is 0.03: try a lower"):
        run(recipe(), spoilt, adjuster=adjuster)


@pytest.mark.parametrize("mixer", ["spectral", "gated", "potential", "diagonal"])
def test_what_overflows_within_the_model_shows_in_the_loss(mixer, healthy, tmp_path):
    model = ResNetBK(ResNetBKConfig(VOCAB, d_model=16, n_layers=2, mixer=mixer))
    model.blocks[0].feed_forward.down.weight.data.fill_(3e38)  # so the second mixer sees infinities
    settings = recipe({"kind": "skip", "most": 1})
    with pytest.raises(UserError, match=r"diverged at step 1: loss nan.*on_divergence.most allows, 1"):
        run(settings, healthy, model, checkpointer=saver(tmp_path))
    assert (tmp_path / "checkpoints" / "diverged-step-1-rank-0.pt").exists()


def test_without_a_place_for_it_the_run_stops_all_the_same(data):
    with pytest.raises(UserError, match=r"loss nan[^;]*; training.lr is 0.03: try a lower one$"):
        run(recipe(), data)


def test_skipping_leaves_the_step_out_and_nothing_else(data, tmp_path):
    settings, ledger = recipe({"kind": "skip", "most": 3}), Ledger()
    log = RunLog(tmp_path / "metrics.jsonl")
    model, result = run(settings, data, reporter=log, ledger=ledger, checkpointer=saver(tmp_path))
    steps = bad_steps(settings, data)
    assert [event["step"] for event in result.divergences] == steps
    assert result.divergences[0]["done"] == "the step was left out"
    lines = RunLog.read(log.path)
    assert [line["step"] for line in lines if "grad_norm" not in line] == [step + 1 for step in steps]
    assert result.steps == settings.steps
    assert ledger.table()["training"]["tokens"] == STEPS * 8 * WINDOW
    per_step = 14 * VOCAB * VOCAB
    assert ledger.table()["optimizer"]["flops"] == (STEPS - len(steps)) * per_step
    assert result.unique_tokens < 200 * WINDOW
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_the_first_step_can_be_left_out_too_and_torch_has_nothing_to_say(healthy, recwarn, schedule):
    settings = recipe("skip", schedule=schedule, warmup=0.2, tokens=9 * 8 * WINDOW)
    healthy.train[sampler(settings, healthy).ids(0)[0], 0] = VOCAB - 1
    _, result = run(settings, healthy)
    assert result.divergences[0]["step"] == 0
    assert not recwarn.list


def saver(folder):
    return Checkpointer(folder / "checkpoints", "key")


def test_skipping_ends_with_an_error_that_says_how_often_it_was_done(data, tmp_path):
    settings = recipe({"kind": "skip", "most": 1}, tokens=60 * 8 * WINDOW)
    second = bad_steps(settings, data)[1]
    with pytest.raises(UserError, match=rf"step {second}: .*as training.on_divergence.most allows, 1"):
        run(settings, data, checkpointer=saver(tmp_path))


FALL_BACK = {"kind": "fall_back", "lr_factor": 3e-22, "most": 2}  # from 1e20 to 0.03


def test_falling_back_recovers_with_a_lower_rate(healthy, tmp_path):
    settings, ledger = recipe(FALL_BACK, lr=1e20), Ledger()
    log = RunLog(tmp_path / "metrics.jsonl")
    model, result = run(settings, healthy, reporter=log, ledger=ledger, checkpointer=saver(tmp_path))
    (event,) = result.divergences
    assert "back to step 0, from there the rate is 3e-22 of the schedule's" in event["done"]
    lines = RunLog.read(log.path)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[0]["lr"] == pytest.approx(0.03)
    lower, plain = run(recipe(lr=0.03), healthy)
    torch.testing.assert_close(model.table.weight, lower.table.weight)
    assert result.validation_loss == pytest.approx(plain.validation_loss)
    assert result.validation_loss < lines[0]["loss"] - 0.3
    table = ledger.table()
    assert table["lost"]["tokens"] == (event["step"] + 1) * 8 * WINDOW
    assert table["lost"]["seconds"] > 0
    assert table["training"]["tokens"] == STEPS * 8 * WINDOW


class Spoilt(Table):
    """Its validation loss is not finite at one look."""

    def __init__(self, look):
        super().__init__()
        self.look = look

    def eval(self):
        self.look -= 1
        return super().eval()

    def forward(self, tokens_BN):
        return super().forward(tokens_BN) + (0.0 if self.training or self.look else math.nan)


def test_a_step_that_was_counted_before_its_validation_diverged_is_lost_once(healthy, tmp_path):
    settings, ledger = recipe({"kind": "fall_back", "lr_factor": 0.5, "most": 1}), Ledger()
    _, result = run(settings, healthy, Spoilt(2), ledger=ledger, checkpointer=saver(tmp_path))
    (event,) = result.divergences
    assert (event["step"], event["done"][:14]) == (10, "back to step 7")
    assert ledger.table()["lost"]["tokens"] == 3 * 8 * WINDOW


class Killed(Exception):
    pass


class KillAt(RunLog):
    def log(self, step, **values):
        super().log(step, **values)
        if step == 17:
            raise Killed


def test_a_run_that_fell_back_and_is_killed_ends_bit_equal(healthy, tmp_path):
    settings = recipe(FALL_BACK, lr=1e20)
    expected, plain = run(settings, healthy, checkpointer=saver(tmp_path / "plain"))
    with pytest.raises(Killed):
        run(settings, healthy, reporter=KillAt(tmp_path / "log"), checkpointer=saver(tmp_path))
    model, result = run(settings, healthy, reporter=RunLog(tmp_path / "log"), checkpointer=saver(tmp_path))
    assert torch.equal(model.table.weight, expected.table.weight)
    assert (result.loss, result.validation_loss) == (plain.loss, plain.validation_loss)
    assert [event["step"] for event in result.divergences] == [event["step"] for event in plain.divergences]


def test_falling_back_stops_after_so_many_times_and_an_infinite_parameter_counts(healthy, tmp_path):
    beyond_float32 = {"lr": 1e30, "weight_decay": 1e10}
    settings = recipe({"kind": "fall_back", "lr_factor": 0.9, "most": 2}, **beyond_float32)
    with pytest.raises(UserError, match=r"parameter table.weight is not finite.*most allows, 2") as caught:
        run(settings, healthy, checkpointer=saver(tmp_path))
    assert "step 0" in str(caught.value)


def test_falling_back_needs_checkpoints(healthy):
    with pytest.raises(ValueError, match="needs a checkpointer"):
        run(recipe("fall_back"), healthy)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("stop", "training.on_divergence.kind: 'stop' is unknown"),
        ({"kind": "fall_back", "lr_factor": 1.0}, "training.on_divergence.lr_factor: .*less than 1"),
        ({"kind": "skip", "lr_factor": 0.5}, "training.on_divergence.lr_factor: unknown key"),
    ],
)
def test_wrong_settings_are_named(value, message):
    with pytest.raises(UserError, match=message):
        recipe(value)


def test_rates_are_scaled_for_the_step_alone():
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.5)
    with scaled_rates(optimizer, 0.1):
        assert optimizer.param_groups[0]["lr"] == 0.05
    assert optimizer.param_groups[0]["lr"] == 0.5
