import math
import time

import numpy as np
import pytest
import torch

from bkray.config import UserError, parse_recipe
from bkray.curriculum import CurriculumSampler, DifficultyAdjuster, GrowingSampler
from bkray.model import build_model
from bkray.reporting import RunLog
from bkray.training import Checkpointer, Ledger, WindowData, train

VOCAB, WINDOW = 16, 24
MEASURED = ("seconds", "tokens_per_second", "time_", "mfu", "memory_bytes")
"""What a line of the log measures, and no run repeats."""


def recipe(**training):
    settings = {"tokens": 40 * 8 * WINDOW, "batch_tokens": 8 * WINDOW, "workers": 1, "checkpoint_every": 7}
    return parse_recipe(
        {
            "name": "t",
            "corpus": {"kind": "docstrings"},
            "window": WINDOW,
            "model": {"kind": "resnet_bk", "d_model": 32, "n_layers": 1, "n_heads": 4},
            "training": {"lr": 1e-2, **settings, "eval_every": 5, "log_every": 3, **training},
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


def run(settings, data, **parts):
    torch.manual_seed(settings.seed)
    model = build_model(settings.model, VOCAB)
    difficulty = np.random.default_rng(1).random(len(data.train))
    sampler = CurriculumSampler(
        difficulty, settings.batch_windows, settings.steps, start=0.3, seed=settings.seed
    )
    return model, train(model, data, sampler, settings, **parts)


@pytest.fixture(scope="module")
def data():
    return WindowData(windows(200), windows(30, seed=1))


def test_it_learns_and_reports(data, tmp_path):
    ledger = Ledger()
    _, result = run(recipe(), data, reporter=RunLog(tmp_path / "metrics.jsonl"), ledger=ledger)
    lines = RunLog.read(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [*range(3, 40, 3), 40]
    assert lines[-1]["tokens"] == result.tokens == 40 * 8 * WINDOW
    assert lines[0]["loss"] > 2.5
    assert result.validation_loss < 1.2
    assert 150 * WINDOW < result.unique_tokens <= 200 * WINDOW
    assert ledger.table()["training"]["tokens"] == result.tokens
    assert ledger.table()["validation"]["tokens"] == 8 * 30 * WINDOW
    assert ledger.table()["optimizer"]["flops"] > 0


class Slow:
    """Windows that take half as long to read as a step to compute."""

    def __init__(self, tokens):
        self.tokens = tokens

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, ids):
        time.sleep(0.04)
        return self.tokens[ids]


def test_reading_does_not_stall_the_step(data, tmp_path):
    """Read in the step it would be a third of the time."""
    settings = recipe(tokens=12 * 8 * WINDOW)
    model = build_model(settings.model, VOCAB)
    model.register_forward_hook(lambda *_: time.sleep(0.08))
    sampler = CurriculumSampler(np.zeros(len(data.train)), 8, settings.steps, start=1.0)
    slow = WindowData(Slow(data.train), data.validation)
    train(model, slow, sampler, settings, reporter=RunLog(tmp_path / "metrics.jsonl"))
    _, *later = RunLog.read(tmp_path / "metrics.jsonl")  # the very first batch has no step to hide behind
    assert len(later) == 3
    assert np.mean([line["time_reading"] for line in later]) < 0.03


def test_halting_is_reported_and_charged_by_its_depth(data, tmp_path):
    model = {"kind": "resnet_bk", "d_model": 32, "n_layers": 3, "n_heads": 4}
    halting = {"threshold": 0.94, "ponder": 0.3, "warmup": 0}  # survival starts at 0.97
    costs = []
    for name, option in (("plain", {}), ("halting", {"halting": halting})):
        settings = recipe(lr=0.1)
        changed = {**settings.model_dump(), "window": WINDOW, "model": {**model, **option}}
        ledger, path = Ledger(), tmp_path / f"{name}.jsonl"
        run(parse_recipe(changed), data, reporter=RunLog(path), ledger=ledger)
        costs.append({kind: row["flops"] for kind, row in ledger.table().items()})
    first, *_, last = RunLog.read(path)
    assert first["ponder_loss"] > last["ponder_loss"]
    assert 1 <= last["depth"] < first["depth"] <= 3
    assert costs[1]["training"] < costs[0]["training"]


def test_the_logged_rate_is_the_highest_of_the_layers(data, tmp_path):
    """The halting units are in no layer, so theirs is the whole rate."""
    training = {"start_from": "elsewhere", "layer_decay": 0.5, "schedule": "constant", "warmup": 0.0}
    settings = recipe(**training, tokens=3 * 8 * WINDOW)
    model = {"kind": "resnet_bk", "d_model": 32, "n_layers": 2, "n_heads": 4, "halting": {}}
    log = RunLog(tmp_path / "metrics.jsonl")
    run(parse_recipe({**settings.model_dump(), "model": model}), data, reporter=log)
    assert RunLog.read(tmp_path / "metrics.jsonl")[-1]["lr"] == pytest.approx(1e-2)


def test_the_loop_tells_the_schedules_of_its_losses(data, tmp_path):
    """The training loss falls from line to line; validation does not, at a rate of next to nothing."""
    rates = {}
    for kind, told in (
        ("loss_trend", {"patience": 1, "up": 1.5, "decay": 0.0}),
        ("plateau", {"patience": 0, "factor": 0.5, "floor": 0.1}),
    ):
        training = {"schedule": {"kind": kind, **told}, "lr": 1e-3 if kind == "loss_trend" else 1e-6}
        log = RunLog(tmp_path / f"{kind}.jsonl")
        run(recipe(**training, warmup=0.0, log_every=5), data, reporter=log)
        rates[kind] = [line["lr"] / training["lr"] for line in RunLog.read(log.path)]
    assert rates["loss_trend"][0] == pytest.approx(1.0)
    assert max(rates["loss_trend"]) > 1.4
    assert min(rates["plateau"]) == pytest.approx(0.1)


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


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("killed_at", [1, 9, 24, 40])
def test_a_killed_run_ends_bit_equal_to_an_uninterrupted_one(data, tmp_path, optimizer, killed_at):
    settings = recipe(optimizer=optimizer)
    plain_ledger, ledger = Ledger(), Ledger()
    plain_log, log = tmp_path / "plain.jsonl", tmp_path / "killed.jsonl"
    adjuster = {"patience": 1, "acceleration": 0.2, "min_delta": 0.3}
    expected, plain = run(
        settings,
        data,
        reporter=RunLog(plain_log),
        ledger=plain_ledger,
        adjuster=DifficultyAdjuster(**adjuster),
    )
    saver = Checkpointer(tmp_path / "checkpoints", "key")
    with pytest.raises(Killed):
        run(
            settings,
            data,
            reporter=KillAt(log, killed_at),
            checkpointer=saver,
            adjuster=DifficultyAdjuster(**adjuster),
        )
    model, result = run(
        settings,
        data,
        reporter=RunLog(log),
        ledger=ledger,
        checkpointer=saver,
        adjuster=DifficultyAdjuster(**adjuster),
    )
    for (name, a), b in zip(expected.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert (result.loss, result.validation_loss) == (plain.loss, plain.validation_loss)
    assert result.unique_tokens == plain.unique_tokens
    lost = ledger.table()["lost"]
    per_step = plain_ledger.table()["training"]["flops"] / settings.steps
    steps_lost = {1: 3, 9: 2, 24: 3, 40: 5}[killed_at]  # logged every 3 steps, checkpointed every 7
    assert lost["tokens"] == steps_lost * 8 * WINDOW
    assert lost["flops"] > steps_lost * per_step
    assert ledger.total_flops - lost["flops"] == plain_ledger.total_flops
    timeless = [
        [
            {k: v for k, v in line.items() if not k.startswith(MEASURED) and k != "total_flops"}
            for line in RunLog.read(path)
        ]
        for path in (plain_log, log)
    ]
    assert timeless[0] == timeless[1]
    assert any(
        line["share"] > 0.3 + 0.7 * line["step"] / 40 + 0.01 for line in timeless[0]
    )  # the adjuster acted


def test_a_run_that_pauses_between_rounds_ends_bit_equal_to_one_that_does_not(data, tmp_path):
    """A round ends between two checkpoints, one is killed; the windows to come are not known."""
    settings, starts = recipe(eval_every=1), [0, 10, 25]
    joined = np.split(np.random.default_rng(2).permutation(200), [50, 90])

    def part(rounds, until, log, **parts):
        torch.manual_seed(0)
        model = build_model(settings.model, VOCAB)
        sampler = GrowingSampler(joined[:rounds], starts, 200, 8, settings.steps, seed=1)
        return model, train(model, data, sampler, settings, reporter=log, until=until, **parts)

    expected, plain = part(3, None, RunLog(tmp_path / "plain.jsonl"))
    saver, log = Checkpointer(tmp_path / "checkpoints", "key"), RunLog(tmp_path / "paused.jsonl")
    _, first = part(1, 10, log, checkpointer=saver)
    assert first.steps == saver.load()["step"] == 10
    assert first.unique_tokens == 50 * WINDOW
    with pytest.raises(Killed):
        part(2, 25, KillAt(log.path, 18), checkpointer=saver)
    part(2, 25, log, checkpointer=saver)
    again, second = part(2, 25, log, checkpointer=saver)  # it had ended: nothing is trained
    assert second.steps == 25
    model, result = part(3, 40, log, checkpointer=saver)
    assert not all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))
    for (name, a), b in zip(expected.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert result == plain
    shares = {line["step"]: line["share"] for line in RunLog.read(log.path)}
    assert (shares[9], shares[24], shares[40]) == (0.25, 0.45, 1.0)
    with pytest.raises(ValueError, match="until 41 must lie between 1 and the 40 steps"):
        part(3, 41, log)


@pytest.mark.parametrize("every", [7, 1000])
def test_a_checkpoint_that_cannot_be_written_stops_the_run_with_a_message(data, tmp_path, every):
    (tmp_path / "file").write_text("in the way")
    log = tmp_path / "metrics.jsonl"
    saver = Checkpointer(tmp_path / "file" / "checkpoints", "key")
    with pytest.raises(UserError, match=r"step-\d+: the checkpoint could not be written .*Not a directory"):
        run(recipe(checkpoint_every=every), data, reporter=RunLog(log), checkpointer=saver)
    assert RunLog.read(log)[-1]["step"] == {7: 12, 1000: 40}[every], "it is said at the next save or the end"


def test_every_step_trains_on_what_the_sampler_says_though_it_is_read_ahead(data):
    """Also right after the adjuster has changed what is available."""
    settings, seen = recipe(), []
    torch.manual_seed(0)
    model = build_model(settings.model, VOCAB)
    model.embedding.register_forward_hook(
        lambda module, given, _: seen.append(given[0].clone()) if module.training else None
    )
    difficulty = np.random.default_rng(1).random(len(data.train))
    samplers = [CurriculumSampler(difficulty, 8, settings.steps, start=0.1) for _ in range(2)]
    adjuster = DifficultyAdjuster(patience=1, acceleration=0.2, min_delta=0.3)
    train(model, data, samplers[0], settings, adjuster=adjuster)
    samplers[1].load_state_dict(samplers[0].state_dict())
    assert len(samplers[0].state_dict()["advances"]) > 1
    steps = [tokens for tokens in seen if tokens.any()]  # zeros are there to count FLOPs
    assert len(steps) == settings.steps
    for step, tokens in enumerate(steps):
        assert np.array_equal(tokens, data.train[samplers[1].ids(step)][:, :-1]), step


def test_options_are_logged_and_resume_bit_equal(data, tmp_path):
    options = {"experts": {"count": 4}, "koopman": {"warmup": 0.5}, "sparsity": {}}
    values = recipe().model_dump(exclude_unset=True)
    settings = parse_recipe({**values, "model": {**values["model"], **options}})
    expected, plain = run(settings, data, reporter=RunLog(tmp_path / "plain.jsonl"))
    saver, log = Checkpointer(tmp_path / "checkpoints", "key"), tmp_path / "killed.jsonl"
    with pytest.raises(Killed):
        run(settings, data, reporter=KillAt(log, 24), checkpointer=saver)
    model, result = run(settings, data, reporter=RunLog(log), checkpointer=saver)
    assert (result.loss, result.validation_loss) == (plain.loss, plain.validation_loss)
    for (name, a), b in zip(expected.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    lines = [RunLog.read(path) for path in (tmp_path / "plain.jsonl", log)]
    for name in ("balance_loss", "koopman_loss", "sparsity_loss", "density", "busiest_expert"):
        assert [line[name] for line in lines[0]] == [line[name] for line in lines[1]]
    assert plain.validation_loss < 1.5


def test_what_is_computed_in_training_alone_is_charged_to_training(data):
    d, ledgers = 32, {}
    for koopman in (None, {}):
        values = recipe().model_dump(exclude_unset=True)
        settings = parse_recipe({**values, "model": {**values["model"], "koopman": koopman}})
        ledgers[koopman is None] = Ledger()
        run(settings, data, ledger=ledgers[koopman is None])
    without, with_it = (ledgers[key].table() for key in (True, False))
    assert with_it["validation"]["flops"] == without["validation"]["flops"]
    added = 3 * 2 * (WINDOW - 1) * d * d * 40 * 8
    assert with_it["training"]["flops"] == without["training"]["flops"] + added


def test_another_seed_is_another_run(data):
    one, _ = run(recipe(), data)
    other, _ = run(recipe().model_copy(update={"seed": 1}), data)
    assert any((a != b).any() for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_on_random_tokens_the_held_out_loss_never_falls_below_the_entropy(tmp_path):
    """A model that sees its targets would: the first trap of BK-Core is a diagonal that leaks the future."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4, (1500, WINDOW + 1)).astype(np.int32)
    settings = recipe(tokens=150 * 8 * WINDOW, checkpoint_every=1000)
    log = RunLog(tmp_path / "metrics.jsonl")
    _, result = run(settings, WindowData(tokens[:1000], tokens[1000:]), reporter=log)
    looks = [line["validation_loss"] for line in RunLog.read(log.path) if "validation_loss" in line]
    assert len(looks) == 30
    assert math.log(4) - 0.01 < min(looks)
    assert result.validation_loss == looks[-1] < math.log(VOCAB)
    assert result.loss > math.log(4) - 0.06  # batches are small; the training windows are seen once and a bit


def test_divergence_is_an_error_that_names_the_rate(data):
    with pytest.raises(UserError, match=r"diverged at step \d+.*training.lr is 1e\+20: try a lower one"):
        run(recipe(optimizer="adamw", lr=1e20, schedule="constant", warmup=0.0), data)


def test_a_parameter_that_becomes_infinite_is_named_at_its_step(data):
    beyond_float32 = {"lr": 1e30, "weight_decay": 1e10}
    settings = recipe(optimizer="adamw", schedule="constant", warmup=0.0, **beyond_float32)
    with pytest.raises(
        UserError, match=r"parameter embedding.weight is not finite after the update of step 0"
    ):
        run(settings, data)


def test_a_model_that_starts_with_nan_is_named(data):
    settings = recipe()
    model = build_model(settings.model, VOCAB)
    with torch.no_grad():
        model.blocks[0].mixer.gate.weight[0, 0] = math.nan
    sampler = CurriculumSampler(np.zeros(len(data.train)), settings.batch_windows, settings.steps, start=1.0)
    with pytest.raises(UserError, match=r"parameter blocks.0.mixer.gate.weight is not finite before step 0"):
        train(model, data, sampler, settings)
