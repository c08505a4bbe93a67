"""What a stage's key depends on."""

import pytest

from bkray.config import parse_recipe
from bkray.runtime import plan
from bkray.runtime.plan import make_plan

BASE = {"name": "t", "corpus": {"kind": "docstrings"}}


def model_key(tmp_path, **training):
    return make_plan(parse_recipe({**BASE, "training": training}), (), tmp_path).stages["model"].key


@pytest.mark.parametrize(
    "training",
    [
        {"trackers": ["tensorboard"]},
        {"keep_checkpoints": 7},
        {"max_failures": 0},
        {"workers": 4, "parallel": "fsdp2", "accumulate": 2},
    ],
)
def test_what_changes_no_result_changes_no_key(tmp_path, training):
    assert model_key(tmp_path, **training) == model_key(tmp_path)


@pytest.mark.parametrize(
    "training",
    [
        {"lr": 1.0},
        {"skip": {}},
        {"precision": "bf16"},
        {"activation_checkpointing": True},
        {"compile": True},
        {"bucket_mb": 1},
        {"gradient_compression": "bf16"},
        {"gradient_cache": {"kind": "stale"}},
    ],
)
def test_what_changes_the_weights_changes_the_key(tmp_path, training):
    assert model_key(tmp_path, **training) != model_key(tmp_path)


def test_weights_are_a_column_only_where_the_recipe_asks_for_them(tmp_path):
    plain = make_plan(parse_recipe(BASE), (), tmp_path).stages
    keys = set()
    for sampling in ({"weight": "loss"}, {"weight": "loss", "end": 0.0}):
        stages = make_plan(parse_recipe({**BASE, "sampling": sampling}), (), tmp_path).stages
        assert "weight" in stages["training_set"].provides
        keys.add((stages["scored"].key, stages["model"].key))
    assert "scored" not in plain
    assert "weight" not in plain["training_set"].provides
    assert len({scored for scored, _ in keys}) == 1  # the strength changes no data
    assert len({model for _, model in keys}) == 2


def test_what_is_off_is_in_no_key(tmp_path, monkeypatch):
    """A key of the recipe that is new, and off, makes no finished run anew."""
    described = []
    monkeypatch.setattr(plan, "key_of", lambda *parts: described.append(parts) or "key")
    model_key(tmp_path)
    (training,) = [parts[2][0] for parts in described if parts[1] == "model"]
    assert training["lr"] == 3e-3
    assert None not in training.values()
