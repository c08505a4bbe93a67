"""A recipe on the base of another: what it takes from there, what it does not, and how far that goes."""

from pathlib import Path

import pytest
import yaml

from bkray.config import UserError, load_recipe
from bkray.config.sweep import load_sweep

PRESETS = Path("pipelines/recipes/presets")


@pytest.fixture
def write(tmp_path):
    def call(file, **values):
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(values))
        return path

    call(
        "base.yaml",
        name="base",
        corpus={"kind": "docstrings", "packages": ["nltk"]},
        augmentation=[{"kind": "deletion", "probability": 0.2}],
        model={"kind": "resnet_bk", "d_model": 64, "koopman": {"weight": 0.3}},
        training={"lr": 0.5, "skip": {"share": 0.3}},
    )
    return call


def test_a_section_is_merged_key_by_key(write):
    path = write(
        "own.yaml", base="base.yaml", name="own", training={"lr": 0.25}, model={"koopman": {"warmup": 0.2}}
    )
    recipe = load_recipe(path, ["training.warmup=0.2"])
    assert recipe.name == "own"
    assert recipe.corpus.packages == ("nltk",)
    assert (recipe.training.lr, recipe.training.warmup, recipe.training.skip.share) == (0.25, 0.2, 0.3)
    assert (recipe.model.d_model, recipe.model.koopman.weight, recipe.model.koopman.warmup) == (64, 0.3, 0.2)


def test_a_list_a_null_and_a_section_of_another_kind_take_the_place_of_what_was_there(write):
    path = write(
        "own.yaml",
        base="base.yaml",
        augmentation=[],
        training={"skip": None},
        model={"kind": "gru", "n_layers": 1},
    )
    recipe = load_recipe(path)
    assert recipe.augmentation == ()
    assert recipe.training.skip is None
    assert (recipe.model.kind, recipe.model.d_model) == ("gru", type(recipe.model)(kind="gru").d_model)


def test_bases_are_relative_to_the_file_that_names_them_however_many_there_are(write):
    write("inner/middle.yaml", base="../base.yaml", name="middle", seed=3)
    recipe = load_recipe(write("own.yaml", base="inner/middle.yaml", training={"lr": 0.1}))
    assert (recipe.name, recipe.seed, recipe.training.lr, recipe.training.skip.share) == (
        "middle",
        3,
        0.1,
        0.3,
    )


def test_a_sweep_takes_a_recipe_with_a_base(write):
    write("own.yaml", base="base.yaml", seed=5)
    space = {"training.lr": {"kind": "choice", "values": [0.1]}}
    _, values = load_sweep(write("sweep.yaml", name="s", recipe="own.yaml", space=space))
    assert (values["seed"], values["training"]["lr"]) == (5, 0.5)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (["base.yaml"], r"own.yaml: base: \['base.yaml'\] is not the path of a recipe"),
        ("bse.yaml", "bse.yaml: no such file; did you mean .*base.yaml"),
        ("own.yaml", "own.yaml: base: own.yaml has this recipe itself as its base"),
        ("other.yaml", "other.yaml: base: own.yaml has this recipe itself as its base"),
    ],
)
def test_a_base_that_cannot_be_is_named(write, base, message):
    write("other.yaml", base="own.yaml")
    with pytest.raises(UserError, match=message):
        load_recipe(write("own.yaml", base=base))


def test_a_fault_in_the_base_is_told(write):
    write("base.yaml", name="base", corpus={"kind": "docstrings"}, training={"lrr": 1})
    with pytest.raises(UserError, match="lrr: unknown key; did you mean lr"):
        load_recipe(write("own.yaml", base="base.yaml"))


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_preset_changes_the_plain_one_in_what_it_is_named_for(path):
    plain, preset = load_recipe(PRESETS / "plain.yaml"), load_recipe(path)
    assert preset.name == path.stem
    assert (preset == plain) == (path.stem == "plain")
    same = {"name": "", "model": None, "training": None}
    assert preset.model_copy(update=same) == plain.model_copy(update=same)
