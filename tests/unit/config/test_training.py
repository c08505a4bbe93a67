"""Settings of `training` that no run can follow are refused, and a run that diverges names the right ones."""

import pytest

from bkray.config import UserError, parse_recipe

STEPS, WINDOW = 40, 256


def parsed(**training):
    given = {"tokens": STEPS * 16 * WINDOW, "batch_tokens": 16 * WINDOW, **training}
    return parse_recipe({"name": "t", "corpus": {"kind": "docstrings"}, "window": WINDOW, "training": given})


@pytest.mark.parametrize(
    ("training", "fault"),
    [
        ({"lr": 3e38}, "training.lr: 3e+38 is above 1e+30, beyond float32 in an update: lower it"),
        ({"lr": float("inf")}, "training.lr: Input should be a finite number, but it is inf"),
        ({"embedding_lr": 1e31}, "training.embedding_lr: 1e+31 is above 1e+30"),
        ({"weight_decay": float("nan")}, "training.weight_decay: Input should be a finite number"),
        ({"bucket_mb": 1e13}, "training.bucket_mb: Input should be less than or equal to 1000000"),
        (
            {"schedule": {"kind": "loss_trend", "high": 1e300}},
            "training.schedule.high: Input should be less than or equal to 1000",
        ),
        (
            {"distillation": {"teachers": ["m"], "temperature": 1e30}},
            "training.distillation.temperature: Input should be less than or equal to 100",
        ),
        (
            {"schedule": {"kind": "restarts", "cycles": 10**9}},
            "restarts of 1000000000 cycles with growth 2 have not a step each in the 38 steps",
        ),
        (
            {"schedule": {"kind": "restarts", "cycles": 39, "growth": 1}},
            "have not a step each in the 38 steps after the warm-up: lower cycles or growth",
        ),
        (
            {"length": {"start": 32, "until": 0.07}},
            "training.length.until 0.07 is 2.8 of 40 steps, not one for each of the 3 lengths",
        ),
        (
            {"skip": {"until": 0.02}},
            "training.skip.until 0.02 of 40 steps is none, so that no window is skipped: raise it",
        ),
    ],
)
def test_what_no_run_can_follow_is_refused(training, fault):
    with pytest.raises(UserError) as error:
        parsed(**training)
    assert fault in str(error.value)


@pytest.mark.parametrize(
    "training",
    [
        {"lr": 1e30, "embedding_lr": 1e-300},
        {"schedule": {"kind": "restarts", "cycles": 38, "growth": 1}},
        {"schedule": {"kind": "restarts", "cycles": 5}},
        {"length": {"start": 32, "until": 0.075}},
        {"skip": {"until": 0.025}},
    ],
)
def test_what_just_fits_is_taken(training):
    parsed(**training)


@pytest.mark.parametrize(
    ("training", "named"),
    [
        ({"lr": 1e20}, "training.lr is 1e+20: try a lower one"),
        ({"embedding_lr": 1e20}, "training.lr is 0.003, training.embedding_lr is 1e+20: try lower ones"),
        ({"weight_decay": 1e20}, "training.lr is 0.003, training.weight_decay is 1e+20: try lower ones"),
    ],
)
def test_where_a_run_diverges_what_may_be_too_high_is_named(training, named):
    assert parsed(**training).training.too_high == named


def test_a_model_that_is_left_out_is_that_of_the_start(tmp_path):
    (tmp_path / "config.json").write_text('{"model": {"kind": "resnet_bk", "d_model": 48, "n_layers": 3}}')
    values = {
        "name": "t",
        "corpus": {"kind": "docstrings"},
        "training": {"start_from": str(tmp_path), "freeze": 2},
    }
    assert parse_recipe(values).model.d_model == 48
    assert parse_recipe({**values, "model": None}).model.n_layers == 3
    own = {"kind": "resnet_bk", "d_model": 32, "n_layers": 4}
    assert parse_recipe({**values, "model": own}).model.d_model == 32
    (tmp_path / "config.json").write_text("{")
    assert parse_recipe({**values, "training": {"start_from": str(tmp_path)}}).model.d_model == 192
    with pytest.raises(UserError, match=r"freeze 4 is too many") as caught:
        parse_recipe({**values, "training": {"start_from": "nowhere", "freeze": 4}})
    assert "start_from nowhere holds no exported model, so the default one was looked at" in str(caught.value)
    with pytest.raises(UserError, match=r"freeze 4 is too many") as caught:
        parse_recipe({**values, "model": own, "training": {"start_from": "nowhere", "freeze": 4}})
    assert "exported" not in str(caught.value)
