"""The moving average of the weights is validated, exported and kept; the weights train as ever."""

import numpy as np
import pytest
import torch

from bkray.config import UserError, parse_recipe
from bkray.curriculum import CurriculumSampler
from bkray.model import build_model
from bkray.reporting import RunLog
from bkray.training import Checkpointer, Ledger, WindowData, train
from bkray.training.objective import token_losses

VOCAB, WINDOW, STEPS = 12, 16, 24


def recipe(average, **training):
    model = {"kind": "resnet_bk", "d_model": 16, "n_layers": 1, "n_heads": 2}
    settings = {"tokens": STEPS * 4 * WINDOW, "batch_tokens": 4 * WINDOW, "workers": 1, "lr": 0.01}
    often = {"log_every": 1, "eval_every": 6, "checkpoint_every": 5}
    chosen = {**settings, **often, "average": average, **training}
    corpus = {"kind": "docstrings"}
    return parse_recipe({"name": "t", "corpus": corpus, "window": WINDOW, "model": model, "training": chosen})


@pytest.fixture(scope="module")
def data():
    starts = np.random.default_rng(0).integers(0, VOCAB, (60, 1))
    windows = ((starts + 5 * np.arange(WINDOW + 1)) % VOCAB).astype(np.int32)
    return WindowData(windows[:50], windows[50:])


class Watching(RunLog):
    """A log that keeps the weights as they are after every step."""

    def __init__(self, path, model):
        super().__init__(path)
        self.model, self.weights = model, []

    def log(self, step, **values):
        super().log(step, **values)
        self.weights.append({name: value.clone() for name, value in self.model.state_dict().items()})


class Killed(Exception):
    pass


class KillAt(RunLog):
    def log(self, step, **values):
        super().log(step, **values)
        if step == 13:
            raise Killed


def run(settings, data, log=None, **parts):
    torch.manual_seed(0)
    model = build_model(settings.model, VOCAB)
    sampler = CurriculumSampler(np.zeros(len(data.train)), 4, settings.steps, start=1.0)
    reporter = log(model) if log else None
    return model, train(model, data, sampler, settings, reporter=reporter, **parts), reporter


def by_hand(weights, decay):
    """The average after every step, in double precision."""
    average = {name: value.double() for name, value in weights[0].items()}
    averages = [average]
    for count, now in enumerate(weights[1:], start=1):
        beta = min(decay, (1 + count) / (10 + count))
        average = {name: beta * average[name] + (1 - beta) * value for name, value in now.items()}
        averages.append(average)
    return averages


def validated(settings, data, weights):
    model = build_model(settings.model, VOCAB)
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    tokens = torch.from_numpy(data.validation).long()
    with torch.no_grad():
        return float(token_losses(model.eval()(tokens[:, :-1]), tokens[:, 1:]).mean())


def test_the_average_is_validated_and_exported_and_the_weights_train_as_without_it(data, tmp_path):
    settings, ledger = recipe({"decay": 0.8}), Ledger()
    model, result, log = run(settings, data, lambda m: Watching(tmp_path / "a.jsonl", m), ledger=ledger)
    plain, _, plain_log = run(recipe(None), data, lambda m: Watching(tmp_path / "b.jsonl", m))
    for one, other in zip(log.weights, plain_log.weights, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    averages = by_hand(log.weights, 0.8)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, averages[-1][name].float())
    assert not torch.allclose(model.embedding.weight, plain.embedding.weight)
    lines = {line["step"]: line for line in RunLog.read(log.path)}
    for step in (6, 12, 18, 24):
        expected = validated(settings, data, averages[step - 1])
        assert lines[step]["validation_loss"] == pytest.approx(expected, rel=1e-4)
    assert result.validation_loss == lines[24]["validation_loss"]
    count = sum(parameter.numel() for parameter in model.parameters())
    assert ledger.table()["averaging"]["flops"] == 3 * count * STEPS


def test_a_killed_run_goes_on_with_the_same_average_bit_for_bit(data, tmp_path):
    settings = recipe({"decay": 0.9})
    expected, plain, _ = run(settings, data)
    saver = Checkpointer(tmp_path / "checkpoints", "key")
    with pytest.raises(Killed):
        run(settings, data, lambda _: KillAt(tmp_path / "log"), checkpointer=saver)
    for _ in range(2):  # the second finds a finished run
        model, result, _ = run(settings, data, lambda _: RunLog(tmp_path / "log"), checkpointer=saver)
        assert result.validation_loss == plain.validation_loss
        for name, value in model.state_dict().items():
            assert torch.equal(value, expected.state_dict()[name]), name


def test_it_is_absent_where_it_is_off(data, tmp_path):
    saver, ledger = Checkpointer(tmp_path / "checkpoints", "key"), Ledger()
    run(recipe(None), data, checkpointer=saver, ledger=ledger)
    assert "average" not in saver.load()
    assert "averaging" not in ledger.table()


def test_a_decay_that_keeps_everything_is_refused():
    with pytest.raises(UserError, match=r"training.average.decay: .*less than 1"):
        recipe({"decay": 1.0})


def test_shares_of_parameters_are_refused():
    with pytest.raises(UserError, match=r"training.average cannot take training.parallel fsdp2"):
        recipe({}, parallel="fsdp2")
