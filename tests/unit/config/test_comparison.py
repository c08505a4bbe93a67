"""A comparison's file: its own keys, those of its base recipe, and arms that can be compared."""

from pathlib import Path

import pytest
import torch
import yaml

from bkray.config import UserError
from bkray.config.comparison import load_comparison
from bkray.model import build_model

BASE = {"name": "base", "corpus": {"kind": "text", "path": "x.txt"}, "window": 64}
SPEC = {
    "name": "models",
    "recipe": "base.yaml",
    "overrides": ["training.batch_tokens=1024"],
    "arms": {"bk": {}, "gru": {"model": {"kind": "gru", "d_model": 64}}},
    "reference": "bk",
    "learning_rates": [0.01],
    "steps": [10],
}


@pytest.fixture
def load(tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))

    def call(*overrides, **changes):
        path = tmp_path / "models.yaml"
        path.write_text(yaml.safe_dump({**SPEC, **changes}))
        return load_comparison(path, overrides)

    return call


def test_arms_differ_in_what_they_name_and_in_nothing_else(load):
    _, recipes = load()
    assert recipes["gru"].model.kind == "gru"
    assert {recipe.training.batch_tokens for recipe in recipes.values()} == {1024}
    assert {recipe.training.workers for recipe in recipes.values()} == {1}
    same = {"name": "", "model": None}
    assert recipes["bk"].model_copy(update=same) == recipes["gru"].model_copy(update=same)


def test_overrides_find_the_comparison_or_its_base_recipe(load):
    comparison, recipes = load("seeds=[4, 5]", "training.warmup=0.2", "corpus.path=y.txt")
    assert comparison.seeds == (4, 5)
    assert recipes["bk"].training.warmup == 0.2
    assert recipes["gru"].corpus.path == "y.txt"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("equal_second=true", r"equal_second: unknown key; did you mean equal_seconds\?"),
        ("timing_round=5", r"timing_round: unknown key; did you mean timing_rounds\?"),
        ("trainin.lr=1e-3", r"trainin: unknown key; did you mean training\?"),
        ("modle.d_model=8", r"the base recipe:\n.*modle: unknown key; did you mean model\?"),
    ],
)
def test_a_misspelt_override_is_told_the_nearest_key_of_either(load, override, message):
    with pytest.raises(UserError, match=message):
        load(override)


def test_an_arm_may_be_a_recipe_of_its_own(load, tmp_path):
    own = {**BASE, "training": {"warmup": 0.3}, "model": {"kind": "gru", "d_model": 32}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    _, recipes = load("corpus.path=y.txt", arms={"bk": {}, "own": "own.yaml"})
    assert (recipes["own"].model.kind, recipes["own"].training.warmup) == ("gru", 0.3)
    assert recipes["own"].training.workers == 1
    shared = {"name": "", "model": None, "training": None}
    assert recipes["own"].model_copy(update=shared) == recipes["bk"].model_copy(update=shared)
    assert recipes["own"].corpus.path == "y.txt"
    assert recipes["own"].training.batch_tokens == recipes["bk"].training.batch_tokens == 1024


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"bk": {}, "own": "owm.yaml"}}, "owm.yaml: no such file"),
        ({"reference": "rnn"}, "reference 'rnn' is not among the arms: bk, gru"),
        ({"arms": {"bk": {}}}, "at least two"),
        ({"seeds": [1, 1]}, "names a value twice"),
        ({"steps": []}, "steps"),
        ({"arms": {"bk": {}, "wide": {"window": 128}}}, "cannot be compared at equal steps"),
        ({"arms": {"bk": {}, "odd": {"model.kid": "gru"}}}, "has no section model"),
        ({"arms": {"bk": {}, "odd": {"model": {"kind": "gruu"}}}}, "gruu"),
        ({"learning_rate": [1]}, "learning_rates"),
    ],
)
def test_what_cannot_be_compared_is_named(load, changes, message):
    with pytest.raises(UserError, match=message):
        load(**changes)


COMPARISONS = sorted((Path(__file__).parents[3] / "pipelines" / "comparisons").glob("*.yaml"))


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_the_comparisons_that_come_along_can_be_run(path):
    comparison, recipes = load_comparison(path)
    assert comparison.name == path.stem.replace("_", "-")
    assert len(recipes) == len(comparison.arms)


@pytest.mark.parametrize(
    "path", [path for path in COMPARISONS if "models" in path.stem], ids=lambda p: p.stem
)
def test_compared_models_have_equally_many_parameters(path):
    _, recipes = load_comparison(path)
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in build_model(recipe.model, recipe.tokenizer.vocab_size).parameters())
            for recipe in recipes.values()
        ]
    assert 2e6 < min(sizes) <= max(sizes) < 1.01 * min(sizes)
