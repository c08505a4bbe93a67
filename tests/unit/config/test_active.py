"""The file of an active-learning loop: its own keys, those of its base recipe, and what cannot be a loop."""

from pathlib import Path

import pytest
import yaml

from bkray.config import UserError
from bkray.config.active import load_active

BASE = {
    "name": "base",
    "corpus": {"kind": "text", "path": "x.txt"},
    "window": 64,
    "curriculum": {"pacing": "linear"},
    "training": {"batch_tokens": 1024, "trackers": ["tensorboard"]},
}
SPEC = {
    "name": "loop",
    "recipe": "base.yaml",
    "overrides": ["curriculum=null"],
    "selection": {"kind": "entropy", "keep": 0.25},
    "start": 0.2,
    "pool": 0.4,
    "rounds": 3,
}


@pytest.fixture
def load(tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))

    def call(*overrides, **changes):
        path = tmp_path / "loop.yaml"
        path.write_text(yaml.safe_dump({**SPEC, **changes}))
        return load_active(path, overrides)

    return call


def test_overrides_find_the_loop_or_its_base_recipe(load):
    active, recipe = load("selection.kind=margin", "seeds=[4]", "training.workers=1", "training.lr=0.01")
    assert active.selection.kind == "margin"
    assert active.selection.keep == 0.25
    assert active.seeds == (4,)
    assert (recipe.name, recipe.training.workers, recipe.training.lr) == ("loop", 1, 0.01)
    assert recipe.training.trackers == ()
    assert recipe.selection is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selection": {"kind": "random"}}, "selection.kind random is what the loop is held against"),
        ({"pool": 0.7, "rounds": 2}, "leave 0.625 of the windows to the last round, less than a pool"),
        ({"seeds": [1, 1]}, "names a value twice"),
        ({"seeds": []}, "seeds"),
        ({"rounds": 0}, "rounds"),
        ({"overrides": []}, "base recipe's difficulty, curriculum would select or order windows"),
        (
            {"overrides": ["curriculum=null", "training.token_selection={}"]},
            "base recipe's proxy would select or order windows",
        ),
        (
            {"overrides": ["curriculum=null", "training.start_from=m", "evaluation.pool=r"]},
            r"base recipe's evaluation\.pool names another pool than the loop's",
        ),
        (
            {"overrides": ["curriculum=null", "training.distillation={teachers: [m]}"]},
            r"training\.distillation would have the teachers read the whole pool",
        ),
        ({"overrides": ["curriculum=null", "training.tokens=3000"]}, "rounds 3 need more than the 3 steps"),
        ({"selection": {"kind": "entropi"}}, "entropy"),
        ({"round": 3}, "rounds"),
    ],
)
def test_what_cannot_be_a_loop_is_named(load, changes, message):
    with pytest.raises(UserError, match=message):
        load(**changes)


def test_a_pool_that_takes_all_that_is_left_is_enough(load):
    active, _ = load(start=0.2, pool=0.4, rounds=5)  # 0.2 + 4 x 0.1 + 0.4
    assert active.rounds == 5


def test_the_loop_that_comes_along_can_be_run():
    active, recipe = load_active(Path(__file__).parents[3] / "pipelines" / "recipes" / "active_loop.yaml")
    assert active.name == "active-loop"
    assert recipe.steps > 100 * active.rounds
