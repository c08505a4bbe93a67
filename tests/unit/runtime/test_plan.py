"""What a stage's key depends on."""

from dataclasses import replace

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
        {"workers": 1, "gpu_share": 0.1},
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


@pytest.mark.parametrize(("kinds", "anew"), [("synonym", True), ("deletion", False), ("swap synonym", True)])
def test_what_synonyms_write_is_in_the_key_of_no_other_augmentation(tmp_path, monkeypatch, kinds, anew):
    recipe = parse_recipe({**BASE, "augmentation": [{"kind": kind} for kind in kinds.split()]})
    before = make_plan(recipe, (), tmp_path).stages["augmented"].key
    monkeypatch.setattr(plan, "_SYNONYMS", 99)
    assert (make_plan(recipe, (), tmp_path).stages["augmented"].key != before) == anew


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


def test_a_column_that_no_stage_before_provides_is_named(tmp_path):
    stages = make_plan(parse_recipe(BASE), (), tmp_path).stages
    stages["windows"] = replace(stages["windows"], requires=("text", "colour"))
    with pytest.raises(AssertionError, match=r"stage windows requires \['colour'\], which documents lacks"):
        plan._check_columns(stages)


def test_a_sample_that_is_not_there_is_named(tmp_path):
    missing = {"sample": {"kind": "text", "path": str(tmp_path / "no.txt")}}
    recipe = parse_recipe({**BASE, "cleaning": {"quality": missing}})
    with pytest.raises(UserError, match=r"cleaning\.quality\.sample: .*no\.txt.*no such file"):
        make_plan(recipe, (), tmp_path)


def test_a_sample_of_a_test_split_alone_is_refused_and_one_among_others_is_in_no_key(tmp_path):
    def filtered():
        sample = {"kind": "text", "path": str(tmp_path / "sample")}
        recipe = parse_recipe({**BASE, "cleaning": {"quality": {"sample": sample}}})
        return make_plan(recipe, (), tmp_path).stages["filtered"].key

    (tmp_path / "sample").mkdir()
    (tmp_path / "sample" / "test.txt").write_text("held out")
    with pytest.raises(UserError, match=r"cleaning\.quality\.sample: it is a test split alone, test\.txt"):
        filtered()
    (tmp_path / "sample" / "train.txt").write_text("trusted")
    key = filtered()
    (tmp_path / "sample" / "test.txt").write_text("other text that is held out")
    assert filtered() == key
    (tmp_path / "sample" / "train.txt").write_text("other text")
    assert filtered() != key


def test_a_vocabulary_of_another_corpus_depends_on_that_alone(tmp_path):
    def tokenizer(**sections):
        return make_plan(parse_recipe({**BASE, **sections}), (), tmp_path).stages["tokenizer"]

    other = tmp_path / "other.txt"
    other.write_text("other text")
    trained = {"tokenizer": {"corpus": {"kind": "text", "path": str(other)}}}
    stage = tokenizer(**trained)
    assert not stage.inputs
    assert stage.key == tokenizer(**trained, cleaning={"exact": False, "near": {}}).key
    assert stage.key != tokenizer().key
    assert stage.key != tokenizer(**trained, seed=1).key, "which draws its splits"
    other.write_text("text that has been changed")
    assert stage.key != tokenizer(**trained).key
    other.unlink()
    with pytest.raises(UserError, match=r"tokenizer\.corpus: .*other\.txt.*no such file"):
        tokenizer(**trained)


def exported(folder, weights=b"w", tokenizer=b"{}"):
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").write_bytes(tokenizer)
    return str(folder)


def keys(tmp_path, **sections):
    return {
        name: stage.key
        for name, stage in make_plan(parse_recipe({**BASE, **sections}), (), tmp_path).stages.items()
    }


def test_a_given_scorer_takes_the_place_of_the_proxy_and_its_files_decide(tmp_path):
    names = ("one", "moved", "other")
    folders = [
        exported(tmp_path / name, weights) for name, weights in zip(names, (b"1", b"1", b"2"), strict=True)
    ]
    one, moved, other = (
        keys(tmp_path, selection={"kind": "entropy"}, proxy={"folder": folder}) for folder in folders
    )
    assert "proxy" not in one
    assert one == moved
    assert one["tokenizer"] == other["tokenizer"]
    assert one["scored"] != other["scored"]
    trained = keys(tmp_path, selection={"kind": "entropy"})
    assert one["tokenizer"] != trained["tokenizer"]
    with pytest.raises(UserError, match=r"proxy.folder .*nowhere holds no exported model"):
        keys(tmp_path, selection={"kind": "entropy"}, proxy={"folder": str(tmp_path / "nowhere")})


def test_what_scores_depend_on_is_in_their_key_and_nothing_else(tmp_path):
    reference = exported(tmp_path / "reference")
    base = {"kind": "variation_ratio", "keep": 0.5}
    plain = keys(tmp_path, selection=base)
    for change, differing in (
        ({"passes": 4}, "scored"),
        ({"dropout": 0.5}, "scored"),
        ({"diversity": {}}, "scored"),
        ({"keep": 0.6}, "selected"),
    ):
        changed = keys(tmp_path, selection={**base, **change})
        assert next(name for name in plain if plain[name] != changed[name]) == differing
    diverse, more = (keys(tmp_path, selection={**base, "diversity": {"clusters": count}}) for count in (8, 9))
    assert diverse["scored"] == more["scored"]
    assert diverse["selected"] != more["selected"]
    given = {"difficulty": {"kind": "reducible", "reference": reference}, "curriculum": {}}
    assert (
        keys(tmp_path, **given)["scored"]
        != keys(tmp_path, difficulty={"kind": "loss"}, curriculum={})["scored"]
    )


def test_embeddings_end_with_the_selection(tmp_path):
    recipe = parse_recipe({**BASE, "selection": {"kind": "random", "diversity": {}}})
    stages = make_plan(recipe, (), tmp_path).stages
    assert "embedding" in stages["scored"].provides
    assert "embedding" not in stages["selected"].provides
    assert "embedding" not in stages["training_set"].provides
