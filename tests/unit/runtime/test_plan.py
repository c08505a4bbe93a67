"""What a stage's key depends on."""

import pytest

from bkray.config import UserError, parse_recipe
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


def test_cleaning_adds_stages_and_leaves_the_documents_as_they_were(tmp_path):
    def stages(**cleaning):
        return make_plan(parse_recipe({**BASE, "cleaning": cleaning}), (), tmp_path).stages

    (tmp_path / "sample.txt").write_text("trusted")
    trusted = {"sample": {"kind": "text", "path": str(tmp_path / "sample.txt")}}
    plain, both = stages(), stages(near={}, quality=trusted)
    assert both.keys() - plain.keys() == {"deduplicated", "filtered"}
    assert both["documents"].key == plain["documents"].key
    order = ["documents", "deduplicated", "filtered", "tokenizer"]
    assert list(both)[:4] == order
    for name in ("tokenizer", "windows"):
        assert next(iter(both[name].inputs)) == "filtered"
    assert list(stages(near={})["tokenizer"].inputs) == ["deduplicated"]
    assert stages(near={"threshold": 0.9})["deduplicated"].key != both["deduplicated"].key
    (tmp_path / "sample.txt").write_text("another sample")
    other = stages(near={}, quality=trusted)
    assert other["deduplicated"].key == both["deduplicated"].key
    assert other["filtered"].key != both["filtered"].key


def test_a_sample_that_is_not_there_is_named(tmp_path):
    missing = {"sample": {"kind": "text", "path": str(tmp_path / "no.txt")}}
    recipe = parse_recipe({**BASE, "cleaning": {"quality": missing}})
    with pytest.raises(UserError, match=r"cleaning\.quality\.sample: .*no\.txt.*no such file"):
        make_plan(recipe, (), tmp_path)
