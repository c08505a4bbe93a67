"""What a teacher must be, before any data is prepared."""

import json
import shutil

import pytest
import torch

from bkray.config import UserError, parse_recipe
from bkray.model import build_model
from bkray.runtime.pipeline import check_models
from bkray.runtime.plan import make_plan
from bkray.training import export_model

VOCABULARY = 40


def recipe(*teachers, d_model=24, **distillation):
    section = {"teachers": [str(folder) for folder in teachers], "top_k": 4, **distillation}
    return parse_recipe(
        {
            "name": "t",
            "corpus": {"kind": "docstrings"},
            "model": {"kind": "resnet_bk", "d_model": d_model, "n_layers": 2, "n_heads": 4},
            "training": {"distillation": section if teachers else None},
        }
    )


@pytest.fixture
def folders(tmp_path, save_tokenizer):
    """Two exported models of one vocabulary."""
    save_tokenizer(tmp_path / "tokenizer.json", VOCABULARY)
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        model = build_model(recipe().model, VOCABULARY)
        export_model(tmp_path / name, model, recipe(), tmp_path / "tokenizer.json", VOCABULARY, {})
    return tmp_path / "one", tmp_path / "two"


def test_as_large_as_the_student_it_teaches_and_smaller_it_does_not(folders):
    check_models([recipe(*folders), recipe(*folders, d_model=16), recipe(*folders, top_k=VOCABULARY)])
    with pytest.raises(UserError, match=r"teachers\[0\] .*one has [\d,]+ parameters, fewer than the student"):
        check_models([recipe(*folders, d_model=32)])
    with pytest.raises(UserError, match=r"top_k 41 is more than the 40 tokens of the teachers' vocabulary"):
        check_models([recipe(*folders, top_k=VOCABULARY + 1)])


def test_what_is_missing_damaged_or_of_another_vocabulary_is_named_by_its_setting(
    folders, tmp_path, save_tokenizer
):
    with pytest.raises(UserError, match=r"training\.distillation\.teachers\[1\] .*nothing holds no exported"):
        make_plan(recipe(folders[0], tmp_path / "nothing"), (), tmp_path)
    weights = folders[1] / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"teachers\[1\] .*two holds no exported model \(SafetensorError"):
        check_models([recipe(*folders)])
    weights.write_bytes(whole)
    (folders[1] / "tokenizer.json").write_text('{"model": {"vo')
    with pytest.raises(UserError, match=r"teachers\[1\] .*two: tokenizer\.json cannot be read \(JSONDecode"):
        check_models([recipe(*folders)])
    save_tokenizer(folders[1] / "tokenizer.json", VOCABULARY, "v")
    with pytest.raises(
        UserError, match=r"teachers\[1\] .*two has another vocabulary than .*teachers\[0\]"
    ) as raised:
        check_models([recipe(*folders)])
    assert "of its 40 tokens 39 are not there, 'v1' among them" in str(raised.value)
    changed = json.loads((folders[0] / "tokenizer.json").read_text())
    vocabulary = changed["model"]["vocab"]
    vocabulary["w1"], vocabulary["w2"] = vocabulary["w2"], vocabulary["w1"]
    (folders[1] / "tokenizer.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"\(the same tokens, but other ids\)"):
        check_models([recipe(*folders)])
    save_tokenizer(folders[1] / "tokenizer.json", VOCABULARY + 1)
    with pytest.raises(UserError, match=r"teachers\[0\] .*has 41 tokens, but .* is for a vocab_size of 40"):
        check_models([recipe(folders[1])])


def test_weights_of_another_size_are_refused_before_anything_is_made(folders):
    other = build_model(recipe(d_model=16).model, VOCABULARY)
    export_model(folders[1], other, recipe(d_model=16), folders[0] / "tokenizer.json", VOCABULARY, {})
    (folders[1] / "config.json").write_text((folders[0] / "config.json").read_text())
    with pytest.raises(
        UserError, match=r"teachers\[1\] .*down.weight is \(16, 64\) and should be \(24, 96\)"
    ):
        check_models([recipe(*folders)])


def test_the_soft_targets_depend_on_weights_and_top_k_and_the_model_on_everything(folders, tmp_path):
    def keys(*teachers, **distillation):
        stages = make_plan(recipe(*teachers, **distillation), (), tmp_path / "run").stages
        return tuple(stages[name].key for name in ("training_set", "soft_targets", "model"))

    one = keys(*folders)
    moved = shutil.copytree(folders[0], tmp_path / "moved")
    assert keys(moved, folders[1]) == one
    for other in ({"temperature": 1.0}, {"weight": 0.1}):
        assert keys(*folders, **other)[:2] == one[:2]
        assert keys(*folders, **other)[2] != one[2]
    for other in (keys(*folders, top_k=5), keys(folders[0]), keys(*reversed(folders))):
        assert other[0] == one[0]
        assert other[1] != one[1]
        assert other[2] != one[2]
    assert "soft_targets" not in make_plan(recipe(), (), tmp_path / "run").stages
