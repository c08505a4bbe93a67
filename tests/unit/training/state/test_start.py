"""Starting from an exported model: its weights, or a refusal that names what differs."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from bkray.config import UserError, parse_recipe
from bkray.corpus.tokenizer import train_tokenizer
from bkray.model import build_model
from bkray.model.compression import quantize_model
from bkray.runtime.plan import make_plan
from bkray.training import export_model, load_model
from bkray.training.state.export import unique_tensors, write_export
from bkray.training.state.start import check_start, load_overlapping, load_start, vocabulary_size

VOCABULARY = 40


def recipe(model=None, **training):
    values = {"kind": "resnet_bk", "d_model": 16, "n_layers": 2, "n_heads": 4, **(model or {})}
    return parse_recipe(
        {"name": "t", "corpus": {"kind": "docstrings"}, "model": values, "training": training}
    )


@pytest.fixture
def folder(tmp_path, save_tokenizer):
    torch.manual_seed(1)
    settings = recipe()
    save_tokenizer(tmp_path / "tokenizer.json", VOCABULARY)
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
    with pytest.raises(
        UserError, match=r"another vocabulary than .*other.json \(of its 40 tokens 40 are not there"
    ):
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


def edited(change):
    """Write the weights of a folder again, changed."""

    def write(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return write


def zeroed(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    half = len(content) // 2
    content[half:] = bytes(len(content) - half)
    (folder / "model.safetensors").write_bytes(content)


def of_vocabulary(size):
    def write(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "vocab_size": size}))

    return write


LAST = "blocks.1.feed_forward.down.weight"


@pytest.mark.parametrize(
    ("damage", "shown", "when_loaded"),
    [
        (of_vocabulary(99), "has 40 tokens, but .* vocab_size of 99", r"\(40, 16\) and should be \(99, 16\)"),
        (edited(lambda tensors: tensors.pop(LAST)), f"{LAST} is missing", f"{LAST} is missing"),
        (
            edited(lambda tensors: tensors.update(more=torch.ones(1))),
            "more is unexpected",
            "more is unexpected",
        ),
        (
            edited(lambda tensors: tensors.update({LAST: torch.ones(32, 64)})),
            r"down.weight is \(32, 64\) and should be \(16, 64\): put",
            r"down.weight is \(32, 64\) and should be \(16, 64\)",
        ),
        (edited(lambda tensors: tensors[LAST].fill_(torch.nan)), f"{LAST} holds NaN", f"{LAST} holds NaN"),
        (zeroed, "model.safetensors is not the file that was exported", "sha256"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json cannot be read", "is missing"),
    ],
    ids=["vocab_size", "missing", "unexpected", "another size", "NaN", "half zeroed", "no tokenizer"],
)
def test_files_that_do_not_belong_together_are_refused_before_anything_is_made(
    folder, damage, shown, when_loaded
):
    damage(folder)
    with pytest.raises(UserError, match=rf"training.start_from .*{shown}"):
        check_start(folder, recipe().model)
    with pytest.raises(UserError, match=when_loaded):
        load_model(folder)


def test_another_tokenizer_of_as_many_tokens_is_not_the_exported_one(folder, save_tokenizer):
    save_tokenizer(folder / "tokenizer.json", VOCABULARY, "v")
    with pytest.raises(UserError, match=r"tokenizer.json is not the file that was exported"):
        check_start(folder, recipe().model)
    save_tokenizer(folder / "tokenizer.json", VOCABULARY + 2)
    with pytest.raises(UserError, match=r"tokenizer.json has 42 tokens, but .* for a vocab_size of 40"):
        check_start(folder, recipe().model)


def test_exports_of_earlier_versions_have_no_digests_and_are_read(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("sha256").keys() == {"model.safetensors", "tokenizer.json"}
    (folder / "config.json").write_text(json.dumps(config))
    edited(lambda tensors: tensors[LAST].zero_())(folder)
    check_start(folder, recipe().model)
    assert not load_model(folder).get_parameter(LAST).any()


def test_packed_weights_fit_as_well(folder):
    config = json.loads((folder / "config.json").read_text())
    network = build_model(recipe().model, VOCABULARY)
    for bits, group in ((8, None), (4, 32)):
        packed = quantize_model(network, unique_tensors(network), bits, group)
        write_export(folder.with_name("packed"), packed, folder / "tokenizer.json", config)
        check_start(folder.with_name("packed"), recipe().model)
    (folder / "config.json").write_text(
        json.dumps({**config, "model": recipe({"d_model": 32}).model.model_dump(mode="json")})
    )
    shutil.copy(folder.with_name("packed") / "model.safetensors", folder)
    with pytest.raises(UserError, match=r"weights do not fit the model of config.json"):
        check_start(folder, recipe({"d_model": 32}).model)


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


def test_another_vocabulary_changes_the_rows_of_the_embedding_alone(tmp_path):
    """A token of both keeps its row under its new id; with the same tokenizer nothing changes at all."""
    paths, settings, tokenizers = [], recipe(), []
    for number, texts in enumerate((["the cat sat", "the mat"], ["das Rat sat", "the Rat"])):
        tokenizers.append(train_tokenizer(texts * 2, 270))
        paths.append(tmp_path / f"{number}.json")
        tokenizers[-1].save(str(paths[-1]))
    old, new = tokenizers
    started = build_model(settings.model, old.get_vocab_size())
    folder = tmp_path / "model"
    export_model(folder, started, settings, paths[0], old.get_vocab_size(), {})
    model = build_model(settings.model, new.get_vocab_size())
    counts = load_overlapping(model, folder, settings.model, paths[1])
    shared = old.get_vocab().keys() & new.get_vocab().keys()
    assert counts == {"shared": len(shared), "new": new.get_vocab_size() - len(shared)}
    assert counts["new"] > 0
    before, after = started.state_dict(), model.state_dict()
    for token in shared:
        row = after["embedding.weight"][new.token_to_id(token)]
        assert torch.equal(row, before["embedding.weight"][old.token_to_id(token)])
    assert all(torch.equal(after[name], before[name]) for name in before if name != "embedding.weight")
    again = build_model(settings.model, old.get_vocab_size())
    assert load_overlapping(again, folder, settings.model, paths[0]) == {
        "shared": old.get_vocab_size(),
        "new": 0,
    }
    assert all(torch.equal(again.state_dict()[name], before[name]) for name in before)


def test_with_overlap_the_tokenizer_depends_on_the_corpus_and_the_model_on_both(folder, tmp_path):
    def keys(**training):
        stages = make_plan(recipe(**training), (), tmp_path / "run").stages
        return stages["tokenizer"].key, stages["model"].key

    plain = keys()
    overlap = keys(start_from=str(folder), start_vocabulary="overlap")
    assert overlap[0] == plain[0]
    assert len({overlap[1], plain[1], keys(start_from=str(folder))[1]}) == 3
    assert keys(start_vocabulary="same") == plain
    settings = recipe(start_from=str(folder), start_vocabulary="overlap")
    assert vocabulary_size(settings) == settings.tokenizer.vocab_size
    values = settings.model_dump(mode="json")
    assert parse_recipe({**values, "tokenizer": {"vocab_size": 300}}).tokenizer.vocab_size == 300
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"b": 0}}}')
    assert keys(start_from=str(folder), start_vocabulary="overlap")[1] != overlap[1]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"training": {"start_from": None}}, r"overlap has no effect without training.start_from"),
        ({"training": {"replay": {"run": "r"}}}, r"training.replay.run r cannot take .* set it to same"),
        ({"evaluation": {"pool": "r"}}, r"evaluation.pool r cannot take training.start_vocabulary overlap"),
        ({"model": {"kind": "import", "target": "a:b"}}, r"overlap cannot take model kind import"),
    ],
)
def test_what_cannot_take_another_vocabulary_is_refused(changes, fault):
    values = recipe(start_from="m", start_vocabulary="overlap").model_dump(mode="json")
    training = {**values["training"], **changes.pop("training", {})}
    with pytest.raises(UserError, match=fault):
        parse_recipe({**values, **changes, "training": training})
