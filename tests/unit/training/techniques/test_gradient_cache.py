import math

import numpy as np
import pytest
import torch
from torch import nn

from bkray.config import UserError, parse_recipe
from bkray.config.gradient_cache import AdaptiveThreshold, ControlVariate, EveryKSteps, StaleGradient
from bkray.curriculum import CurriculumSampler
from bkray.model import build_model
from bkray.reporting import RunLog
from bkray.training import Checkpointer, GradientCache, Ledger, WindowData, train
from bkray.training.techniques.gradient_cache import adapted

VOCAB, WINDOW, BATCH = 16, 24, 8
NEVER_OFF = {"least_cosine": -1.0, "most_rise": 1e9}


SECTIONS = {"stale": StaleGradient, "control_variate": ControlVariate, "every": EveryKSteps}


# The cache by itself: a model whose gradients the test plants.


class Planted:
    """Batches are windows of one token each, so that equal tokens are equal keys; gradients are given."""

    def __init__(self, kind="stale", **settings):
        torch.manual_seed(0)
        self.model = nn.Embedding(30, 16)
        self.cache = GradientCache(self.model, SECTIONS[kind](kind=kind, **settings))

    def step(self, step, token, gradient, loss=1.0):
        """(whether it was a hit, whether it was computed, what it left of a gradient of equal numbers)."""
        choice = self.cache.look_up(step, torch.full((2, 5), token))
        self.model.weight.grad = None
        if choice.compute:
            self.model.weight.grad = torch.full_like(self.model.weight, gradient)
        self.cache.settle(choice, torch.tensor(loss) if choice.compute else None)
        return choice.entry is not None, choice.compute, self.model.weight.grad[0, 0].item()


def used(planted, tokens, first=0):
    return [planted.step(first + i, token, 11.0 + i) for i, token in enumerate(tokens)]


def test_a_hit_takes_the_gradient_of_the_batch_like_it():
    planted = Planted(first_audits=1, audit=1e-9, scale=0.5)
    results = used(planted, [3, 4, 5, 4, 4, 3, 3])
    assert [hit for hit, _, _ in results] == [False, False, False, True, True, True, True]
    assert [computed for _, computed, _ in results] == [True, True, True, True, False, False, False]
    assert [gradient for _, _, gradient in results] == [11, 12, 13, 14, 0.5 * 14, 0.5 * 11, 0.5 * 11]


def test_what_is_done_to_a_gradient_afterwards_does_not_reach_the_cache():
    planted = Planted(first_audits=1, audit=1e-9)
    used(planted, [3, 3])
    for step in (2, 3):
        assert planted.step(step, 3, 9.0)[2] == 12.0
        planted.model.weight.grad.zero_()


def test_a_gradient_that_is_too_old_is_dropped():
    planted = Planted(max_age=3, first_audits=1, audit=1e-9)
    planted.step(0, 3, 1.0)
    planted.step(1, 3, 2.0)  # the audit takes its place
    assert planted.step(4, 3, 5.0) == (True, False, 2.0)
    assert planted.step(5, 3, 6.0) == (False, True, 6.0)
    assert [entry.step for entry in planted.cache.entries] == [5]


def test_the_memory_is_bounded_and_the_oldest_go():
    entry = 4 * (30 * 16 + 30)
    planted = Planted(max_bytes=3 * entry + 7)
    used(planted, [1, 2, 3, 4])
    assert [entry.step for entry in planted.cache.entries] == [1, 2, 3]
    assert [hit for hit, _, _ in used(planted, [4, 2, 1], first=4)] == [True, True, False]
    held = sum(
        e.gradient_P.untyped_storage().nbytes() + 4 * e.counts_V.numel() for e in planted.cache.entries
    )
    assert held == 3 * entry


def test_memory_for_less_than_one_gradient_is_refused_with_the_arithmetic():
    with pytest.raises(UserError, match=r"max_bytes 2,039 .*480 parameters and counts of 30.* are 2,040"):
        Planted(max_bytes=2039)
    Planted(max_bytes=2040)


def test_a_model_without_an_embedding_is_refused_unless_nothing_is_compared():
    with pytest.raises(UserError, match=r"Linear has no torch.nn.Embedding: use kind every"):
        GradientCache(nn.Linear(2, 2), StaleGradient(kind="stale"))
    GradientCache(nn.Linear(2, 2), EveryKSteps(kind="every"))


def test_the_threshold_goes_where_as_many_hit_as_wanted_and_not_beyond_its_bounds():
    settings = AdaptiveThreshold(hit_rate=0.3, low=0.9, high=0.9999)
    rng, threshold, hits = np.random.default_rng(0), 0.9999, []
    for cosine in 1 - 0.05 * rng.random(4000):
        hits.append(cosine >= threshold)
        threshold = adapted(threshold, hits[-1], settings)
        assert 0.9 <= threshold <= 0.9999
    assert np.mean(hits[1000:]) == pytest.approx(0.3, abs=0.03)
    for always, bound in ((False, 0.9), (True, 0.9999)):
        for _ in range(200):
            threshold = adapted(threshold, always, settings)
        assert threshold == bound


def test_the_cache_adapts_its_threshold():
    settings = AdaptiveThreshold(hit_rate=0.5, low=0.1, high=0.99)
    planted = Planted(threshold=0.99, adapt=settings, max_age=1)
    thresholds = [0.99]
    for step, token in enumerate([3, 4, 5, 5]):
        hit, _, _ = planted.step(step, token, 1.0)
        thresholds.append(adapted(thresholds[-1], hit, settings))
        assert planted.cache.threshold == thresholds[-1]
    assert thresholds[3] < thresholds[2] < thresholds[1] < 0.99
    assert thresholds[3] < thresholds[4]
    assert planted.cache.measurements()["cache_threshold"] == thresholds[4]


def test_a_lower_threshold_takes_what_is_less_alike():
    """Batches of two tokens, one of them in common."""
    hits = []
    for threshold in (0.9, 0.1):
        planted = Planted(threshold=threshold)
        with torch.no_grad():
            planted.model.weight.copy_(torch.eye(30, 16))
        for step, tokens in enumerate(([3, 4, 0], [4, 5, 0])):
            choice = planted.cache.look_up(step, torch.tensor([tokens]))
            planted.model.weight.grad = torch.ones_like(planted.model.weight)
            planted.cache.settle(choice, torch.tensor(1.0))
        hits.append(planted.cache.hits)
    assert hits == [0, 1]  # their cosine is 1/2, whatever the last token, which is a target only


def gradients(at):
    """Two gradients of a real model at nearby parameters, flat: a batch's own and one like it."""
    torch.manual_seed(0)
    model = build_model(recipe().model, VOCAB)
    flat = []
    for batch in (windows(BATCH, seed=at), windows(BATCH, seed=at + 1)):
        tokens = torch.from_numpy(batch).long()
        logits = model(tokens[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        flat.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    return model, flat


@pytest.mark.parametrize("kind", ["control_variate", "stale"])
def test_the_mean_of_a_control_variate_is_the_true_gradient(kind):
    """Within four standard errors, along the difference of the two gradients; a stale one's mean is not."""
    model, (true, cached) = gradients(at=3)
    settings = SECTIONS[kind](
        kind=kind, audit=0.3, threshold=-1.0, max_age=10**6, first_audits=1, **NEVER_OFF
    )
    cache = GradientCache(model, settings)
    tokens = torch.from_numpy(windows(BATCH)).long()

    def leave(step, given):
        choice = cache.look_up(step, tokens)
        if choice.compute:
            cache._put(given.clone())
        cache.settle(choice, torch.tensor(1.0) if choice.compute else None)
        return choice.compute, torch.cat([p.grad.flatten() for p in model.parameters()])

    leave(0, cached)
    leave(1, cached)
    assert len(cache.entries) == 1
    kept = cache.entries[0]
    along = (true - cached) / (true - cached).norm()
    computed, left = [], []
    for step in range(2, 400):
        cache.entries = [kept]  # given c: a computed gradient would take its place
        one, gradient = leave(step, true)
        computed.append(one)
        left.append(float((gradient - true) @ along))
    assert np.mean(computed) == pytest.approx(0.3, abs=0.08)
    error = np.std(left) / math.sqrt(len(left))
    assert error < 0.1 * float((true - cached).norm())
    assert bool(abs(np.mean(left)) < 4 * error) is (kind == "control_variate")


def test_every_k_steps_one_gradient_is_computed():
    planted = Planted("every", steps=3, first_audits=1, audit=1e-9)
    results = used(planted, [3, 4, 5, 6, 7, 8, 9, 10])
    assert [computed for _, computed, _ in results] == [True, True, False, False, True, False, False, True]
    assert [gradient for _, _, gradient in results] == [11, 12, 12, 12, 15, 15, 15, 18]


def test_audits_that_find_another_direction_switch_it_off(caplog):
    planted = Planted(first_audits=3, least_cosine=0.5)
    signs = [1.0, 1.0, -1.0, 1.0]  # cosines 1, -1, -1
    results = [planted.step(step, 3, sign) for step, sign in enumerate(signs)]
    assert [gradient for _, _, gradient in results] == signs
    said = "off from step 3 on, after 3 hits: the last 3 audits found a mean cosine of -0.333 to the true"
    assert said in caplog.text
    assert said in planted.cache.off
    assert planted.cache.measurements()["cache_cosine"] == pytest.approx(-1 / 3)
    assert planted.step(4, 3, 7.0) == (False, True, 7.0)
    assert not planted.cache.entries
    assert planted.cache.measurements() == {}


def test_audits_that_find_another_length_switch_it_off():
    planted = Planted(first_audits=2)
    for step in range(3):
        planted.step(step, 3, 0.2**step)
    assert "cached gradients 5 times as long as the true ones" in planted.cache.off


def test_a_small_scale_is_no_other_length():
    planted = Planted(scale=0.1, first_audits=3, audit=1e-9)
    for step in range(6):
        planted.step(step, 3, 1.0)
    assert not planted.cache.off


def test_a_rising_loss_switches_it_off_once_it_has_reused_something():
    planted = Planted("every", steps=2, first_audits=2, audit=1e-9, most_rise=0.05)
    losses = [2.0] * 4 + [2.0 + 0.1 * i for i in range(20)]
    for step, loss in enumerate(losses):
        planted.step(step, 3, 1.0, loss)
    assert "the smoothed loss rose" in planted.cache.off
    untouched = Planted(threshold=2.0, most_rise=0.05)
    for step, loss in enumerate(losses):
        untouched.step(step, 3, 1.0, loss)
    assert not untouched.cache.off


def test_the_loss_that_is_watched_goes_on_from_a_checkpoint():
    caches = [Planted("every", first_audits=2, audit=1e-9, most_rise=0.05) for _ in range(2)]
    for step in range(40):
        if step == 12:
            caches[1].cache = GradientCache(caches[1].model, caches[1].cache.settings)
            caches[1].cache.load_state_dict(caches[0].cache.state_dict())
        for planted in caches[: 1 if step < 12 else 2]:
            planted.step(step, 3, 1.0, loss=2.0 + 0.1 * max(0, step - 8))
    assert "the smoothed loss rose" in caches[0].cache.off
    assert caches[0].cache.off == caches[1].cache.off


def test_a_gradient_that_is_not_finite_is_neither_kept_nor_changed():
    planted = Planted("control_variate", first_audits=1)
    used(planted, [3, 3])
    assert math.isnan(planted.step(2, 4, math.nan, math.nan)[2])
    assert [entry.step for entry in planted.cache.entries] == [1]
    assert planted.cache.smoothed == 1.0


# The cache in the loop.


def recipe(tokens=40 * BATCH * WINDOW, cache=None, **training):
    settings = {"batch_tokens": BATCH * WINDOW, "workers": 1, "checkpoint_every": 7, "lr": 1e-2}
    return parse_recipe(
        {
            "name": "t",
            "corpus": {"kind": "docstrings"},
            "window": WINDOW,
            "model": {"kind": "resnet_bk", "d_model": 32, "n_layers": 1, "n_heads": 4},
            "training": {
                **settings,
                "tokens": tokens,
                "eval_every": 20,
                "log_every": 3,
                "gradient_cache": cache,
                **training,
            },
        }
    )


def windows(count, seed=0):
    """Windows of a language that can be learnt: every token follows from the last, but for some noise."""
    rng = np.random.default_rng(seed)
    tokens = np.empty((count, WINDOW + 1), dtype=np.int32)
    tokens[:, 0] = rng.integers(0, VOCAB, count)
    for position in range(WINDOW):
        random = rng.integers(0, VOCAB, count)
        tokens[:, position + 1] = np.where(
            rng.random(count) < 0.1, random, (5 * tokens[:, position] + 3) % VOCAB
        )
    return tokens


DATA = WindowData(windows(200), windows(30, seed=1))


class Repeating(CurriculumSampler):
    """The first three global batches in turn, for ever."""

    def ids(self, step, rank=0, world_size=1):
        return super().ids(step % 3, rank, world_size)


def run(settings, sampler=CurriculumSampler, data=DATA, **parts):
    torch.manual_seed(settings.seed)
    model, ledger = build_model(settings.model, VOCAB), Ledger()
    batches = sampler(np.zeros(len(data.train)), BATCH, settings.steps, start=1.0, seed=settings.seed)
    return model, train(model, data, batches, settings, ledger=ledger, **parts), ledger.table()


def assert_equal(one, other):
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("kind", ["stale", "control_variate"])
def test_a_threshold_above_one_is_the_plain_run_bit_for_bit(kind):
    plain, expected, costs = run(recipe())
    cached, result, more = run(recipe(cache={"kind": kind, "threshold": 1.5}))
    assert_equal(plain, cached)
    assert result == expected
    assert more["training"]["flops"] == costs["training"]["flops"]
    assert 0 < more["gradient_cache"]["flops"] < 0.01 * costs["training"]["flops"]


def test_repeated_batches_hit_and_only_what_was_computed_is_charged(tmp_path):
    log = tmp_path / "metrics.jsonl"
    cache = {"kind": "stale", "max_age": 100, "first_audits": 2, "audit": 1e-9, **NEVER_OFF}
    _, plain, costs = run(recipe(lr=1e-3), Repeating)
    _, result, less = run(recipe(lr=1e-3, cache=cache), Repeating, reporter=RunLog(log))
    lines = RunLog.read(log)
    assert [line["cache_hit_rate"] for line in lines] == [0.0] + 13 * [1.0]
    assert [line["cache_saved"] for line in lines] == [0.0, 1 / 3] + 12 * [1.0]
    assert [line["loss"] is None for line in lines] == 2 * [False] + 12 * [True]
    assert 0.9 < lines[-1]["cache_cosine"] < 1.0
    saved, hits, size = 35, 37, sum(p.numel() for p in build_model(recipe().model, VOCAB).parameters())
    assert less["training"]["tokens"] == (40 - saved) * BATCH * WINDOW
    assert less["training"]["flops"] == costs["training"]["flops"] * (40 - saved) / 40
    assert less["optimizer"]["flops"] == costs["optimizer"]["flops"]
    compared = 2 * VOCAB * 32 * (2 + 3 + hits * 4)  # the entries there are, and the batch
    assert less["gradient_cache"]["flops"] == compared + hits * size + (hits - saved) * 6 * size
    assert less["gradient_cache"]["seconds"] > 0
    assert (result.tokens, result.unique_tokens) == (plain.tokens, plain.unique_tokens)
    assert (
        plain.loss < result.validation_loss < math.log(VOCAB)
    )  # one direction a batch is enough to learn by


def test_windows_that_were_not_computed_are_not_counted_as_seen():
    _, plain, _ = run(recipe(tokens=25 * BATCH * WINDOW))
    cache = {"kind": "every", "steps": 2, "first_audits": 1, "audit": 1e-9, **NEVER_OFF}
    _, result, _ = run(recipe(tokens=25 * BATCH * WINDOW, cache=cache))
    assert plain.unique_tokens == 200 * WINDOW
    assert result.unique_tokens == (25 - 12) * BATCH * WINDOW
    assert result.tokens == plain.tokens


class Killed(Exception):
    pass


class KillAt(RunLog):
    def log(self, step, **values):
        super().log(step, **values)
        if step >= 18:  # the last checkpoint, at 14, lies between two lines
            raise Killed


KINDS = {
    "stale": {"kind": "stale", "threshold": 0.9, "adapt": {"hit_rate": 0.6, "low": -1.0}},
    "control_variate": {"kind": "control_variate", "threshold": 0.5, "max_bytes": 200_000},
    "every": {"kind": "every", "steps": 3},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_ends_bit_equal_to_an_uninterrupted_one(kind, tmp_path):
    settings = recipe(cache={**KINDS[kind], "first_audits": 2, **NEVER_OFF})
    logs = [tmp_path / "plain.jsonl", tmp_path / "killed.jsonl"]
    expected, plain, costs = run(settings, reporter=RunLog(logs[0]))
    saver = Checkpointer(tmp_path / "checkpoints", "key")
    with pytest.raises(Killed):
        run(settings, reporter=KillAt(logs[1]), checkpointer=saver)
    model, result, again = run(settings, reporter=RunLog(logs[1]), checkpointer=saver)
    assert_equal(expected, model)
    assert result == plain
    assert again["training"]["flops"] == costs["training"]["flops"]
    assert again["gradient_cache"]["flops"] == costs["gradient_cache"]["flops"]
    figures = [
        [
            {k: v for k, v in line.items() if k.startswith(("cache", "loss", "grad"))}
            for line in RunLog.read(log)
        ]
        for log in logs
    ]
    assert figures[0] == figures[1]
    assert any(line["cache_saved"] for line in figures[0])
    assert all(line["cache_norm_ratio"] > 0 for line in figures[0][3:])
    if kind == "stale":
        assert len({line["cache_threshold"] for line in figures[0]}) > 10


def test_a_run_that_was_switched_off_stays_off_after_a_kill(tmp_path, caplog):
    settings = recipe(cache={"kind": "every", "steps": 4, "first_audits": 3, "least_cosine": 1.0})
    saver = Checkpointer(tmp_path / "checkpoints", "key")
    with pytest.raises(Killed):
        run(settings, reporter=KillAt(tmp_path / "log.jsonl"), checkpointer=saver)
    assert "off from step 3 on, after 3 hits" in caplog.text
    caplog.clear()
    model, _, _ = run(settings, reporter=RunLog(tmp_path / "log.jsonl"), checkpointer=saver)
    assert not caplog.text
    assert_equal(run(recipe())[0], model)


# The recipe.


def test_the_threshold_must_start_within_the_bounds_of_its_adaptation():
    with pytest.raises(UserError, match=r"threshold 2 must lie within adapt.low 0.9 and adapt.high 0.99999"):
        recipe(cache={"kind": "stale", "threshold": 2.0, "adapt": {}})


@pytest.mark.parametrize("key", ["threshold", "adapt", "max_age", "max_bytes"])
def test_what_every_k_steps_does_not_use_is_refused(key):
    with pytest.raises(UserError, match=f"gradient_cache.*{key}: unknown key"):
        recipe(cache={"kind": "every", key: 1})
