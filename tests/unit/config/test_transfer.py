"""The file of a transfer: whose overrides are whose, and what each phase takes from the one before."""

from pathlib import Path

import pytest
import yaml

from bkray.config import UserError, parse_recipe
from bkray.config.transfer import held_out_of, load_transfer, next_recipe, phase_recipe, target_of

RECIPES = Path(__file__).parents[3] / "pipelines" / "recipes"
POOL = {
    "name": "pool",
    "corpus": {"kind": "text", "path": "pool.txt"},
    "tokenizer": {"vocab_size": 300},
    "model": {"kind": "resnet_bk", "d_model": 48, "n_layers": 3},
}
TARGET = {"name": "target", "corpus": {"kind": "text", "path": "target.txt"}, "seed": 2}
SPEC = {
    "name": "both",
    "phases": [
        {"name": "pretrain", "recipe": "pool.yaml", "overrides": ["seed=1"]},
        {"name": "tune", "recipe": "target.yaml", "overrides": ["training.freeze=1"]},
    ],
}


@pytest.fixture
def load(tmp_path):
    (tmp_path / "pool.yaml").write_text(yaml.safe_dump(POOL))
    (tmp_path / "target.yaml").write_text(yaml.safe_dump(TARGET))

    def call(*overrides, **changes):
        path = tmp_path / "transfer.yaml"
        path.write_text(yaml.safe_dump({**SPEC, **changes}))
        return load_transfer(path, overrides)

    return call


def test_overrides_find_their_phase_and_the_rest_are_the_targets(load):
    transfer, values = load("pretrain.training.lr=0.1", "training.lr=0.2", "name=other", "window=64")
    assert (transfer.name, list(values)) == ("other", ["pretrain", "tune"])
    assert values["pretrain"] == {**POOL, "seed": 1, "training": {"lr": 0.1}}
    assert values["tune"] == {
        **TARGET,
        "name": "other",
        "window": 64,
        "training": {"freeze": 1, "lr": 0.2},
    }


def test_the_nearest_to_what_is_the_targets_corpus_unless_it_is_named(load):
    _, values = load("pretrain.cleaning.nearest={keep: 0.2}", "corpus.path=other.txt")
    assert values["pretrain"]["cleaning"]["nearest"] == {"to": values["tune"]["corpus"], "keep": 0.2}
    assert values["tune"]["corpus"]["path"] == "other.txt"
    named = {"kind": "text", "path": "named.txt"}
    _, values = load(f"pretrain.cleaning.nearest={{to: {named}, keep: 0.2}}")
    assert values["pretrain"]["cleaning"]["nearest"]["to"] == named
    with pytest.raises(UserError, match=r"phase tune:\n.*cleaning\.nearest\.to: missing"):
        load("cleaning.nearest={keep: 0.2}")


def test_a_vocabulary_is_of_the_last_phase_or_of_the_corpus_that_is_given(load):
    _, values = load("pretrain.tokenizer.corpus=tune", "corpus.path=other.txt")
    assert values["pretrain"]["tokenizer"]["corpus"] == values["tune"]["corpus"]
    assert values["tune"]["corpus"]["path"] == "other.txt"
    given = {"kind": "text", "path": "given.txt"}
    _, values = load(f"pretrain.tokenizer={{vocab_size: 300, corpus: {given}}}")
    assert values["pretrain"]["tokenizer"] == {"vocab_size": 300, "corpus": given}
    for other in ("tun", "pretrain"):
        with pytest.raises(UserError, match=rf"phase pretrain: tokenizer\.corpus {other} .*set it to tune"):
            load(f"pretrain.tokenizer.corpus={other}")
    with pytest.raises(UserError, match=r"phase tune:\n.*tokenizer\.corpus: 'tune' is no section"):
        load("tokenizer.corpus=tune", "training.start_vocabulary=overlap")


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([("one", "pool.yaml")], "phases: .*at least 2"),
        ([("model", "pool.yaml"), ("b", "pool.yaml")], "phases: model is a key of a recipe"),
        ([("a", "pool.yaml"), ("a", "pool.yaml")], "phases: a is the name of two phases"),
        ([("a", "pol.yaml"), ("b", "pool.yaml")], "did you mean .*pool.yaml"),
    ],
)
def test_phases_that_are_none_are_named(load, phases, message):
    with pytest.raises(UserError, match=message):
        load(phases=[{"name": name, "recipe": recipe} for name, recipe in phases])


def test_a_key_that_is_not_known_is_named(load):
    with pytest.raises(UserError, match=r"phase pretrain:\n.*training\.lrr: unknown key; did you mean lr"):
        load("pretrain.training.lrr=1")
    with pytest.raises(UserError, match=r"phase tune:\n.*training\.lrr: unknown key; did you mean lr"):
        load("training.lrr=1")
    with pytest.raises(UserError, match=r"phases\.0\.recip: unknown key; did you mean recipe"):
        load(phases=[{"name": "a", "recip": "pool.yaml"}])
    with pytest.raises(UserError, match="did you mean phases"):
        load(phase={})


def following(**changes):
    before = parse_recipe(POOL)
    return next_recipe({**TARGET, **changes}, before, Path("runs/pool"), "t.yaml, phase tune")


def test_a_phase_takes_model_start_and_pool_from_the_one_before():
    recipe = following()
    assert recipe.model == parse_recipe(POOL).model
    assert recipe.training.start_from == "runs/pool/model"
    assert recipe.evaluation.pool == "runs/pool"
    assert following(model=None).model == recipe.model
    replay = following(training={"replay": {"share": 0.3}})
    assert replay.training.replay.run == "runs/pool"
    assert replay.evaluation is None  # the replayed run is looked at anyway
    assert following(evaluation=None).evaluation is None
    assert following(window=64).evaluation is None
    own = following(training={"start_vocabulary": "overlap"}, tokenizer={"vocab_size": 400})
    assert (own.evaluation, own.tokenizer.vocab_size) == (None, 400)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"start_from": "m"}}, "phase tune: training.start_from m would pass over the phase"),
        (
            {"model": {"kind": "resnet_bk", "d_model": 32, "n_layers": 3}},
            "phase tune: the phase before trains another model: model.d_model is 32 here and 48 there: "
            "set model to null here. A smaller one learns from it in a run of its own",
        ),
        ({"window": 64, "training": {"replay": {}}}, "window is 64 and that of the phase before 256"),
        ({"tokenizer": {"vocab_size": 400}}, "phase tune:\n.*tokenizer.vocab_size has no effect"),
        ({"training": {"freeze": 3}}, "training.freeze 3 is too many"),
    ],
)
def test_what_does_not_follow_from_the_phase_before_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        following(**changes)


def test_what_the_target_holds_out_is_kept_out_of_the_pool():
    target = target_of(TARGET, "t.yaml")
    plain = parse_recipe(POOL)

    def leakage(recipe, carved=True, named=False):
        return held_out_of(recipe, target, carved, named, "phase pretrain").cleaning.leakage

    added = leakage(plain)
    assert added.held_out_of == {"target": target.corpus}
    assert (added.overlap, added.seeds) == (13, (0, 2))  # the pool's documents are drawn with seed 0
    assert leakage(plain, carved=False).seeds == ()
    named = {**POOL, "cleaning": {"leakage": {"held_out_of": {"mine": TARGET["corpus"]}, "seeds": [2]}}}
    named = parse_recipe(named)
    assert leakage(named, named=True) == named.cleaning.leakage
    other = {"leakage": {"held_out_of": {"a": POOL["corpus"]}}}
    assert set(leakage(parse_recipe({**POOL, "cleaning": other})).held_out_of) == {"a", "target"}
    other = {"leakage": {"held_out_of": {"target": POOL["corpus"]}}}
    with pytest.raises(UserError, match=r"held_out_of.target is not the corpus of the last phase"):
        leakage(parse_recipe({**POOL, "cleaning": other}))


def test_a_teacher_may_be_a_phase_before(load):
    def teachers(*names):
        distillation = {"teachers": list(names)}
        values = {**TARGET, "training": {"distillation": distillation}}
        before = {"pretrain": (parse_recipe(POOL), Path("runs/pool")), "mid": (following(), Path("runs/mid"))}
        return phase_recipe(values, before, "phase tune").training.distillation.teachers

    assert teachers("mid", "some/model", "pretrain") == ("runs/mid/model", "some/model", "runs/pool/model")
    with pytest.raises(
        UserError, match=r"phase tune: .*teachers pretrian is no folder.*did you mean pretrain\?"
    ):
        teachers("mid", "pretrian")
    with pytest.raises(
        UserError, match=r"teachers xyz is no folder and no phase before; those are pretrain, mid"
    ):
        teachers("xyz")
    with pytest.raises(UserError, match=r"phase pretrain: .*teachers last is no .*this one is the first"):
        load("pretrain.training.distillation={teachers: [last]}")
    with pytest.raises(UserError, match=r"phase tune:\n.*training\.distillation\.teachers"):
        load("training.distillation={teachers: 3}")


def test_the_shipped_file_is_a_transfer():
    transfer, values = load_transfer(RECIPES / "transfer.yaml")
    before, *rest = values
    recipe = parse_recipe(values[before])
    for name in rest:
        recipe = next_recipe(values[name], recipe, Path("runs"), name)
    assert recipe.name == transfer.name == "wikitext2-transfer"
