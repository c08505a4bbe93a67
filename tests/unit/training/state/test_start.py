"""Starting from an exported model: its weights, or a refusal that names what differs."""

import json
import shutil

import pytest
import torch

from bkray.config import UserError, parse_recipe
from bkray.model import build_model
from bkray.runtime.plan import make_plan
from bkray.training import export_model
from bkray.training.state.start import check_start, load_start, vocabulary_size

VOCABULARY = 40


def recipe(model=None, **training):
    values = {"kind": "resnet_bk", "d_model": 16, "n_layers": 2, "n_heads": 4, **(model or {})}
    return parse_recipe(
        {"name": "t", "corpus": {"kind": "docstrings"}, "model": values, "training": training}
    )


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(1)
    settings = recipe()
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    model = build_model(settings.model, VOCABULARY)
    export_model(tmp_path / "model", model, settings, tmp_path / "tokenizer.json", VOCABULARY, {})
    return tmp_path / "model"


def test_the_weights_are_those_of_the_folder(folder):
    expected, other = build_model(recipe().model, VOCABULARY), build_model(recipe().model, VOCABULARY)
    load_start(expected, folder, recipe().model, folder / "tokenizer.json")
    assert any((a != b).any() for a, b in zip(expected.parameters(), other.parameters(), strict=True))
    load_start(other, folder, recipe().model, folder / "tokenizer.json")
    for one, two in zip(expected.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert vocabulary_size(recipe(start_from=str(folder))) == VOCABULARY
    assert vocabulary_size(recipe()) == 4096


def test_another_model_or_vocabulary_is_refused_by_what_differs(folder, tmp_path):
    with pytest.raises(UserError, match=r"model.d_model is 32 here and 16 there: set the recipe's"):
        check_start(folder, recipe({"d_model": 32}).model)
    with pytest.raises(UserError, match=r"model.mixer is 'potential' here and 'spectral' there"):
        check_start(folder, recipe({"mixer": "potential"}).model)
    other = tmp_path / "other.json"
    other.write_text('{"model": {"vocab": {"b": 0}}}')
    with pytest.raises(UserError, match=r"another vocabulary than .*other.json"):
        load_start(build_model(recipe().model, VOCABULARY), folder, recipe().model, other)
    with pytest.raises(UserError, match=r"holds no exported model .*name the folder model/ of a run"):
        check_start(tmp_path / "nothing", recipe().model)


@pytest.mark.parametrize(
    ("file", "damage", "shown"),
    [
        ("model.safetensors", lambda content: content[:-1], "SafetensorError"),
        ("config.json", lambda content: content[:-1], "JSONDecodeError"),
        ("config.json", lambda content: b"{}", "KeyError: 'model'"),
        ("config.json", lambda content: b"[]", "TypeError"),
    ],
    ids=["weights cut", "cut", "without model", "a list"],
)
def test_a_damaged_folder_is_refused_before_anything_is_made(folder, file, damage, shown):
    (folder / file).write_bytes(damage((folder / file).read_bytes()))
    with pytest.raises(UserError, match=rf"training.start_from .* holds no exported model \({shown}"):
        check_start(folder, recipe().model)


def test_the_plan_depends_on_what_is_in_the_folder_and_not_on_its_place(folder, tmp_path):
    def keys(start):
        stages = make_plan(recipe(start_from=start and str(start)), (), tmp_path / "run").stages
        return stages["tokenizer"].key, stages["model"].key

    first = keys(folder)
    assert first[0] != keys(None)[0]
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert keys(moved) == first
    content = bytearray((moved / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (moved / "model.safetensors").write_bytes(content)
    assert keys(moved)[0] == first[0]
    assert keys(moved)[1] != first[1]
    (moved / "tokenizer.json").write_text(json.dumps({"model": {}}))
    assert keys(moved)[0] != first[0]
    with pytest.raises(UserError, match=r"training.start_from .*nothing holds no exported model"):
        keys(tmp_path / "nothing")
