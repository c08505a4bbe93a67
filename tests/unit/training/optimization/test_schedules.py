"""Every schedule against its closed form, and against itself after a checkpoint in the middle."""

import copy
import math

import pytest
import torch
from torch import nn

from bkray.config import UserError, parse_section
from bkray.config.model import ResNetBKModel
from bkray.config.training import Training
from bkray.model import build_model
from bkray.training import LossTrendLR, build_optimizer, build_schedule
from bkray.training.optimization.schedules import PlateauLR

RATE = 0.5


def cosine(progress):
    return 0.5 * (1 + math.cos(math.pi * progress))


def make(schedule, steps, warmup):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=RATE)
    return optimizer, build_schedule(optimizer, Training(lr=RATE, schedule=schedule, warmup=warmup), steps)


def rates(schedule, steps, warmup=0.25, told=None):
    """The rates of the steps, in units of the base rate; `told` is called with the schedule after each."""
    optimizer, driver = make(schedule, steps, warmup)
    seen = []
    for step in range(steps):
        seen.append(optimizer.param_groups[0]["lr"] / RATE)
        optimizer.step()
        driver.step()
        if told:
            told(driver, step)
    return seen


WARM = [1 / 5, 2 / 5, 3 / 5, 4 / 5, 1.0]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1.0] * 15),
        ("linear", [1 - i / 15 for i in range(15)]),
        ("cosine", [cosine(i / 15) for i in range(15)]),
        ({"kind": "wsd", "decay": 0.4}, [1.0] * 9 + [1 - i / 6 for i in range(6)]),
        (
            {"kind": "restarts", "cycles": 2, "growth": 2},
            [cosine(i / 5) for i in range(5)] + [cosine(i / 10) for i in range(10)],
        ),
        ({"kind": "restarts", "cycles": 3, "growth": 1}, [cosine(i / 5) for i in range(5)] * 3),
        ("plateau", [1.0] * 15),
        ({"kind": "loss_trend", "decay": 0.5}, [1.0] * 5 + [1 - i / 10 for i in range(10)]),
    ],
)
def test_warm_up_and_what_follows(schedule, expected):
    assert rates(schedule, 20) == pytest.approx(WARM + expected, abs=1e-12)


def test_without_a_warm_up_the_first_step_is_at_the_rate():
    for schedule in ("constant", "linear", "cosine", "plateau", "loss_trend", "wsd"):
        assert rates(schedule, 10, warmup=0.0)[0] == 1.0


def test_a_warm_up_of_one_step_is_a_step_at_the_rate():
    assert rates("linear", 11, warmup=0.1) == pytest.approx([1.0] + [1 - i / 10 for i in range(10)])
    twice = rates({"kind": "restarts", "cycles": 2, "growth": 1}, 21, warmup=0.05)
    assert twice == pytest.approx([1.0] + 2 * [cosine(i / 10) for i in range(10)])


def test_one_cycle_rises_and_falls_as_cosines():
    settings = {"kind": "one_cycle", "start": 0.1, "end": 0.01}
    seen = rates(settings, 21, warmup=0.25)
    top = 0.25 * 21 - 1  # torch's: the peak may lie between two steps
    up = [0.1 + 0.9 * (1 - cosine(i / top)) for i in range(5)]
    down = [0.01 + 0.99 * cosine((i - top) / (20 - top)) for i in range(5, 21)]
    assert seen == pytest.approx(up + down, abs=1e-9)


def test_cycles_that_do_not_fit_end_without_a_new_start():
    seen = rates({"kind": "restarts", "cycles": 2, "growth": 2}, 13, warmup=0.0)
    assert seen.count(1.0) == 2
    assert seen[-1] < 0.25


def test_plateau_lowers_after_patience_and_stops_at_the_floor():
    settings = {"kind": "plateau", "factor": 0.5, "patience": 1, "floor": 0.2}
    losses = [3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    seen = rates(settings, 10, 0.0, lambda driver, step: driver.observe_validation(losses[step]))
    # the best is seen at step 1; every second look without a fall halves the rate of the next step
    assert seen == pytest.approx([1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2])


def test_plateau_hears_nothing_during_the_warm_up():
    settings = {"kind": "plateau", "patience": 0}
    seen = rates(settings, 20, 0.25, lambda driver, step: step < 4 and driver.observe_validation(1.0))
    assert seen == pytest.approx(WARM + [1.0] * 15)


TREND = {"kind": "loss_trend", "up": 1.5, "down": 0.5, "patience": 2, "smoothing": 0.0, "decay": 0.0}


def trend(losses, **changes):
    """Rates where every step is followed by the next of `losses`."""
    told = lambda driver, step: driver.observe(losses[step])  # noqa: E731
    return rates({**TREND, **changes}, len(losses), 0.0, told)


def test_the_trend_rises_with_a_steady_fall_and_stops_at_its_bound():
    losses = [8.0 * 0.9**step for step in range(9)]
    assert trend(losses, high=2.0) == pytest.approx([1, 1, 1, 1, 1.5, 1.5, 2, 2, 2])


def test_the_trend_falls_on_a_plateau_and_stops_at_its_bound():
    assert trend([4.0] * 9, low=0.3) == pytest.approx([1, 1, 1, 1, 0.5, 0.5, 0.3, 0.3, 0.3])


def test_a_fall_that_is_not_steady_moves_nothing():
    losses = [4.0, 3.0, 3.0, 2.0, 2.0, 1.0, 1.0, 0.5]
    assert trend(losses) == [1.0] * 8


def test_nothing_ratchets_after_the_bound_the_way_back_is_as_short():
    falling, flat = [8.0 * 0.9**step for step in range(13)], [1.0] * 5
    seen = trend([*falling, *flat], high=1.5)
    assert max(seen) == 1.5
    assert seen[-1] == pytest.approx(0.75)


def test_a_restart_begins_anew_with_its_warm_up():
    settings = {**TREND, "restart_every": 10, "high": 10.0}
    told = lambda driver, step: driver.observe(8.0 * 0.9**step)  # noqa: E731
    seen = rates(settings, 20, 0.1, told)  # a warm-up of two steps
    assert seen[:2] == seen[10:12] == [0.5, 1.0]
    assert seen[9] > 1.5
    assert seen[:10] == pytest.approx(seen[10:])


def test_restarts_lie_under_the_decay():
    """Told of no fall, the trend halves within a cycle; the decay takes the last 10 of 20 steps."""
    settings = {**TREND, "restart_every": 6, "decay": 0.5}
    seen = rates(settings, 20, 0.1, lambda driver, step: driver.observe(4.0))
    cycle = [0.5, 1.0, 1.0, 1.0, 0.5, 0.5]
    decay = [1.0] * 10 + [1 - i / 10 for i in range(10)]
    assert seen == pytest.approx([a * b for a, b in zip([*cycle * 3, 0.5, 1.0], decay, strict=True)])


def test_smoothing_hears_noise_less():
    noisy = [4.0 * 0.97**step + (0.3 if step % 2 else 0.0) for step in range(30)]
    assert max(trend(noisy, threshold=0.0)) == 1.0
    assert max(trend(noisy, threshold=0.0, smoothing=0.95)) > 1.0


@pytest.mark.parametrize(
    "schedule",
    [
        "constant", "linear", "cosine", "wsd", "one_cycle", "restarts", "plateau", "loss_trend",
        {**TREND, "restart_every": 7},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("cut", [3, 11])
def test_goes_on_after_a_checkpoint_as_if_there_had_been_none(schedule, cut):
    torch.manual_seed(0)
    training = Training(optimizer="muon", lr=RATE, warmup=0.25, schedule=schedule)
    losses = [4.0, 3.0, 2.5, 2.5, 2.4, 2.4, 2.4] + [2.0 - step / 20 for step in range(13)]

    def build():
        model = build_model(ResNetBKModel(kind="resnet_bk", d_model=16, n_layers=1, n_heads=2), 40)
        optimizer = build_optimizer(model, training)
        return optimizer, build_schedule(optimizer, training, 20)

    def go(optimizer, driver, steps):
        seen = []
        for step in steps:
            seen.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            driver.step()
            if isinstance(driver, LossTrendLR):
                driver.observe(losses[step])
            if isinstance(driver, PlateauLR):
                driver.observe_validation(losses[step])
        return seen

    whole = go(*build(), range(20))
    first = build()
    assert go(*first, range(cut)) == whole[:cut]
    saved = copy.deepcopy([part.state_dict() for part in first])
    second = build()
    for part, state in zip(second, saved, strict=True):
        part.load_state_dict(state)
    assert go(*second, range(cut, 20)) == whole[cut:]


def test_the_schedule_drives_both_optimizers():
    model = build_model(ResNetBKModel(kind="resnet_bk", d_model=16, n_layers=1, n_heads=2), 40)
    training = Training(optimizer="muon", lr=RATE, warmup=0.5)
    optimizer = build_optimizer(model, training)
    schedule = build_schedule(optimizer, training, 10)
    for _ in range(10):
        assert len({group["lr"] for group in optimizer.param_groups}) == 1
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule": "linera"}, "linear"),
        ({"schedule": {"kind": "wsd", "decay": 2}}, "decay"),
        ({"schedule": {"kind": "cosine", "decay": 0.5}}, "decay"),
        ({"schedule": "one_cycle", "warmup": 0.0}, "above 0"),
        ({"schedule": {"kind": "loss_trend", "high": 0.5}}, "both sides of 1"),
    ],
)
def test_impossible_schedules_are_named(values, message):
    with pytest.raises(UserError, match=message):
        parse_section(Training, values, "recipe")


def test_a_name_is_short_for_a_kind():
    assert Training(schedule="wsd") == Training(schedule={"kind": "wsd"})
