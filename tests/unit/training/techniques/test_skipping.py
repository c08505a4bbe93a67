import copy
import logging

import numpy as np
import pytest
import torch

from bkray.config import parse_recipe
from bkray.config.skip import Skip
from bkray.curriculum import CurriculumSampler
from bkray.model import build_model
from bkray.reporting import RunLog
from bkray.training import Checkpointer, ExampleSkipper, Ledger, WindowData, train
from bkray.training.loop import TrainingRun
from bkray.training.techniques.skipping import inclusion_probabilities, rank_correlation, systematic_sample

VOCAB, WINDOW = 16, 24


def recipe(**training):
    settings = {"tokens": 40 * 8 * WINDOW, "batch_tokens": 8 * WINDOW, "workers": 1, "checkpoint_every": 7}
    return parse_recipe(
        {
            "name": "t",
            "corpus": {"kind": "docstrings"},
            "window": WINDOW,
            "model": {"kind": "resnet_bk", "d_model": 32, "n_layers": 1, "n_heads": 4},
            "training": {"lr": 1e-2, **settings, "eval_every": 50, "log_every": 3, **training},
        }
    )


@pytest.fixture(scope="module")
def data():
    """Every token follows from the last, but every third window is noise and stays hard."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB, (200, WINDOW + 1)).astype(np.int32)
    for position in range(WINDOW):
        tokens[:, position + 1] = np.where(
            np.arange(200) % 3 == 0, tokens[:, position + 1], (5 * tokens[:, position] + 3) % VOCAB
        )
    return WindowData(tokens, tokens[:0])


class Killed(Exception):
    pass


class KillAt(RunLog):
    def __init__(self, path, step):
        super().__init__(path)
        self.step = step

    def log(self, step, **values):
        super().log(step, **values)
        if step >= self.step:
            raise Killed


def training_run(settings, data, model=None, ledger=None, reporter=None):
    torch.manual_seed(settings.seed)
    model = model or build_model(settings.model, VOCAB)
    sampler = CurriculumSampler(
        np.zeros(len(data.train)), settings.batch_windows, settings.steps, start=1.0, seed=settings.seed
    )
    return TrainingRun(model, data, sampler, settings, reporter, ledger or Ledger(), None)


def trained(settings, data, **parts):
    torch.manual_seed(settings.seed)
    model = build_model(settings.model, VOCAB)
    difficulty = np.random.default_rng(1).random(len(data.train))
    sampler = CurriculumSampler(
        difficulty, settings.batch_windows, settings.steps, start=0.3, seed=settings.seed
    )
    return model, train(model, data, sampler, settings, **parts)


# --- pure parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("drawn", "kept", "floor"), [(20, 16, 0.4), (32, 16, 0.1), (10, 8, 0.8), (7, 7, 1)])
def test_probabilities_rise_sum_to_what_is_kept_and_respect_floor_and_one(drawn, kept, floor):
    probabilities = inclusion_probabilities(drawn, kept, floor)
    assert probabilities.sum() == pytest.approx(kept, abs=1e-9)
    assert (np.diff(probabilities) >= 0).all()
    assert probabilities.min() >= floor
    assert probabilities.max() <= 1


def test_between_floor_and_one_probabilities_are_proportional_to_the_quantile():
    probabilities = inclusion_probabilities(32, 16, 0.1)
    quantiles = (np.arange(32) + 0.5) / 32
    inner = (probabilities > 0.1) & (probabilities < 1)
    assert inner.sum() > 20
    ratios = probabilities[inner] / quantiles[inner]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-9)


def test_a_floor_that_cannot_be_held_is_refused():
    with pytest.raises(ValueError, match=r"floor 0\.9 and 16 kept of 20 candidates"):
        inclusion_probabilities(20, 16, 0.9)


def test_the_sample_has_exactly_the_size_and_the_probabilities():
    """Over an even grid of starts, every position is held as often as its probability says."""
    probabilities = inclusion_probabilities(23, 9, 0.2)
    starts = (np.arange(20_000) + 0.5) / 20_000
    counts = np.zeros(23)
    for start in starts:
        sample = systematic_sample(probabilities, start)
        assert len(np.unique(sample)) == 9
        counts[sample] += 1
    np.testing.assert_allclose(counts / len(starts), probabilities, atol=2e-4)


def skipper(**settings):
    return ExampleSkipper(Skip(**settings), 16, 100, 200, seed=3)


def test_equal_predictions_share_their_probability():
    one = skipper(share=0.5, floor=0.1)
    predicted = np.array([0.0] * 8 + [1.0] + [2.0] * 23)
    probabilities = one.probabilities(predicted[::-1])[::-1]
    assert probabilities.sum() == pytest.approx(16)
    assert probabilities[0] < probabilities[8] < probabilities[9]
    assert len(set(probabilities)) == 3
    np.testing.assert_allclose(one.probabilities(np.zeros(32)), 0.5)  # nothing known: at random, no weights


def test_candidates_are_refilled_to_full_batches_and_nothing_is_skipped_near_the_end():
    one = skipper(share=0.2, until=0.75)
    assert [one.candidates(step) for step in (0, 74, 75, 99)] == [20, 20, 16, 16]
    assert not one.active(75)
    assert one.examined(100) == 75 * 20 + 25 * 16


def test_easy_windows_are_kept_less_often_and_the_weights_balance_it():
    one = skipper(share=0.5, floor=0.1)
    tokens = np.tile(np.arange(9, dtype=np.int32), (32, 1))
    ids = np.arange(32)
    one.predictor.excess[:], one.predictor.seen[:] = np.arange(200), True
    one.predictor.moments[0, 0] = one.predictor.products[0] = 1e9  # its prediction: the last loss
    counts, estimates = np.zeros(32), np.zeros(32)
    for step in range(3000):
        choice = one.choose(step, ids, tokens)
        assert len(choice.ids) == 16
        counts[choice.ids] += 1
        estimates[choice.ids] += choice.weights
    np.testing.assert_allclose(counts / 3000, inclusion_probabilities(32, 16, 0.1), atol=0.04)
    np.testing.assert_allclose(estimates / 3000 / 16, 1 / 32, atol=0.006)
    assert counts[:4].max() < 0.25 * counts[-1]


# --- the gradient ----------------------------------------------------------------------------------


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()]).double().numpy()


def mean_skipped_and_full_gradient(data, unbiased, draws=400):
    """z-scores of the difference along fixed directions, of a model trained for a while."""
    settings = recipe(skip={"share": 0.5, "floor": 0.15, "until": 1.0, "unbiased": unbiased})
    run = training_run(settings, data)
    for _ in range(25):
        run.train_step()
    ids = run.sampler.ids(run.step)
    tokens = torch.as_tensor(data.train[ids], dtype=torch.int64)
    run.model.zero_grad()
    run.objective(tokens).mean().backward()
    full = gradient(run.model)
    skipped = []
    for step in range(draws):  # the same candidates, other draws
        run.step, run.sampler.ids = step, lambda step: ids
        run.model.zero_grad()
        run.backward(run.draw())
        skipped.append(gradient(run.model))
    directions = np.random.default_rng(0).normal(size=(20, len(full)))
    directions[0] = full
    differences = (np.array(skipped) - full) @ directions.T
    return differences.mean(0) / (differences.std(0) / np.sqrt(draws))


def test_the_mean_skipped_gradient_is_the_full_gradient(data):
    scores = mean_skipped_and_full_gradient(data, unbiased=True)
    assert np.abs(scores).max() < 3.5
    assert np.abs(scores).mean() < 1.3


def test_without_weights_it_is_not(data):
    assert np.abs(mean_skipped_and_full_gradient(data, unbiased=False)).max() > 6


def test_the_biased_mode_says_so(caplog):
    with caplog.at_level(logging.WARNING, "bkray.training"):
        skipper()
        assert not caplog.messages
        skipper(unbiased=False)
    assert "the gradient is biased towards windows of large predicted loss" in caplog.text


# --- in the loop -----------------------------------------------------------------------------------


def test_hard_windows_are_trained_on_more_often_and_it_is_all_in_the_log(data, tmp_path):
    ledger, path = Ledger(), tmp_path / "metrics.jsonl"
    settings = recipe(
        tokens=60 * 8 * WINDOW, skip={"share": 0.5, "floor": 0.1, "until": 0.8}, schedule="constant"
    )
    run = training_run(settings, data, ledger=ledger, reporter=RunLog(path))
    visits = np.zeros(len(data.train))
    candidates = np.zeros(len(data.train))
    sampler = copy.deepcopy(run.sampler)  # the run reads ahead with its own, in a thread
    for step in range(60):
        ids = sampler.ids(step)
        assert len(ids) == (16 if step < 48 else 8)
        candidates[ids] += 1
        batch = run.draw()
        assert len(batch.ids) == 8
        assert set(batch.ids) <= set(ids)
        visits[batch.ids] += 1
        run.train_step()
        if run.step % 6 == 0:
            run.log()
    noise = np.arange(len(data.train)) % 3 == 0
    assert visits.sum() == 480
    assert (
        visits[noise].sum() / candidates[noise].sum() > 1.3 * visits[~noise].sum() / candidates[~noise].sum()
    )
    lines = RunLog.read(path)
    assert lines[-1]["candidates"] == 48 * 16 + 12 * 8
    assert lines[-1]["tokens"] == 480 * WINDOW == ledger.table()["training"]["tokens"]
    assert np.mean([line["rank_correlation"] for line in lines[4:8]]) > 0.3
    assert np.mean([line["loss"] - line["candidate_loss"] for line in lines[4:8]]) > 0.03
    assert "rank_correlation" not in lines[-1]
    spent = ledger.table()
    assert spent["predictor"]["flops"] == 48 * run.skipper.predictor.flops(16, 8, WINDOW)
    assert spent["predictor"]["seconds"] > 0
    parts = [spent[kind]["seconds"] for kind in ("predictor", "optimizer", "training")]
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(run.seconds)
    assert run.result().unique_tokens == (visits > 0).sum() * WINDOW


@pytest.mark.parametrize("killed_at", [9, 36])
@pytest.mark.parametrize("skip", [{"share": 0.3}, {"share": 0.5, "by": "random"}])
def test_a_killed_run_ends_bit_equal_to_an_uninterrupted_one(data, tmp_path, skip, killed_at):
    settings = recipe(skip={**skip, "until": 0.8})
    expected, plain = trained(settings, data, reporter=RunLog(tmp_path / "plain.jsonl"))
    saver, log = Checkpointer(tmp_path / "checkpoints", "key"), tmp_path / "killed.jsonl"
    with pytest.raises(Killed):
        trained(settings, data, reporter=KillAt(log, killed_at), checkpointer=saver)
    model, result = trained(settings, data, reporter=RunLog(log), checkpointer=saver)
    for (name, a), b in zip(expected.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert (result.loss, result.unique_tokens) == (plain.loss, plain.unique_tokens)
    lines = [RunLog.read(path) for path in (tmp_path / "plain.jsonl", log)]
    for name in ("candidates", "candidate_loss", "rank_correlation", "loss"):
        assert [line.get(name) for line in lines[0]] == [line.get(name) for line in lines[1]]


def test_where_nothing_is_skipped_yet_weights_and_log_are_those_of_the_plain_run(data, tmp_path):
    """`until` so low that no step skips, which a recipe cannot say: what is off is absent, to the bit."""
    runs = []
    for name, skip in (("plain", None), ("never", Skip(until=0.01))):
        settings = recipe()
        training = settings.training.model_copy(update={"skip": skip})
        settings = settings.model_copy(update={"training": training})
        model, _ = trained(settings, data, reporter=RunLog(tmp_path / f"{name}.jsonl"))
        runs.append(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(run.values() for run in runs), strict=True))


def test_ranks_of_equal_length():
    assert rank_correlation(np.array([1.0, 2.0, 5.0]), np.array([0.1, 7.0, 9.0])) == pytest.approx(1)
    assert rank_correlation(np.array([1.0, 2.0, 5.0]), np.array([9.0, 7.0, 0.0])) == pytest.approx(-1)
    assert np.isnan(rank_correlation(np.zeros(3), np.arange(3.0)))
