"""Which run is a pool, and what of it stages depend on. No cluster needed."""

import json

import pytest

from bkray.config import UserError, parse_recipe
from bkray.runtime.artifacts import write_manifest
from bkray.runtime.plan import make_plan
from bkray.runtime.pool import find_pool

TOKENIZER = '{"model": {"vocab": {"a": 0}}}'


def finished(folder, window=256, tokenizer=TOKENIZER, key="k1"):
    """What a finished run leaves of itself, as far as a pool asks for it."""
    model = folder / "model"
    model.mkdir(parents=True)
    (model / "tokenizer.json").write_text(tokenizer)
    (model / "model.safetensors").write_bytes(b"w")
    write_manifest(
        model, {"configuration": {"window": window}, "inputs": {"training_set": key, "windows": key}}
    )
    for name in ("training_set", "windows"):
        path = folder / "artifacts" / f"{name}-{key}"
        path.mkdir(parents=True)
        write_manifest(path, {"key": key})
    return folder


def recipe(start, **sections):
    training = {"start_from": str(start / "model"), **sections.pop("training", {})}
    return parse_recipe({"name": "t", "corpus": {"kind": "docstrings"}, "training": training, **sections})


def replay(run, **more):
    return {"replay": {"run": str(run), **more}}


@pytest.mark.parametrize("named", ["training.replay.run", "evaluation.pool"])
def test_both_settings_find_the_windows_that_the_model_was_made_of(tmp_path, named):
    run = finished(tmp_path / "run")
    asked = (
        {"training": replay(run)} if named == "training.replay.run" else {"evaluation": {"pool": str(run)}}
    )
    given = recipe(run, **asked)
    assert given.pool == (named, str(run))
    pool = find_pool(given)
    assert pool.training_set.path == run / "artifacts" / "training_set-k1"
    assert pool.windows.path == run / "artifacts" / "windows-k1"
    assert find_pool(recipe(run)) is None


def test_what_is_no_pool_is_named_with_the_setting(tmp_path):
    run, alike = finished(tmp_path / "run"), finished(tmp_path / "alike")
    cases = {
        "holds no finished run": tmp_path / "none",
        "has windows of 128, window is 256": finished(tmp_path / "short", window=128),
        r"another vocabulary \(2 tokens\) than training.start_from .* \(1\)": finished(
            tmp_path / "other", tokenizer='{"model": {"vocab": {"a": 0, "b": 1}}}'
        ),
    }
    for message, folder in cases.items():
        with pytest.raises(UserError, match=rf"training\.replay\.run .*{message}"):
            find_pool(recipe(run, training=replay(folder)))
    (alike / "artifacts" / "windows-k1" / "manifest.json").unlink()
    with pytest.raises(UserError, match="has lost its windows"):
        find_pool(recipe(run, training=replay(alike)))
    for manifest in ({"inputs": {}}, {"inputs": {}, "configuration": {"window": 256}}):
        (alike / "model" / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match="holds no finished run"):
            find_pool(recipe(run, training=replay(alike)))


def test_the_model_depends_on_share_and_windows_and_the_evaluation_on_the_windows(tmp_path):
    run, moved = finished(tmp_path / "run"), finished(tmp_path / "moved")
    other = finished(tmp_path / "other", key="k2")

    def keys(**asked):
        stages = make_plan(recipe(run, **asked), [], tmp_path).stages
        return stages["model"].key, stages["forgetting"].key if "forgetting" in stages else None

    plain, seen = keys(), keys(evaluation={"pool": str(run)})
    assert plain[1] is None
    assert seen[0] == plain[0]
    one = keys(training=replay(run))
    assert keys(training=replay(moved)) == one
    assert keys(training=replay(run, share=0.2))[0] != one[0] != plain[0]
    assert keys(training=replay(other))[0] != one[0]
    assert keys(evaluation={"pool": str(other)})[1] != seen[1]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"training": {"start_from": None, **replay("r")}},
            r"training\.replay\.run r .* without training\.start_from",
        ),
        (
            {"training": {"start_from": None}, "evaluation": {"pool": "r"}},
            r"evaluation\.pool r .* without training\.start_from",
        ),
        (
            {"training": replay("r"), "evaluation": {"pool": "r"}},
            r"evaluation\.pool has no effect beside training\.replay",
        ),
        ({"training": {**replay("r"), "skip": {}}}, r"training\.skip cannot take training\.replay"),
        (
            {"training": {**replay("r"), "token_selection": {}}},
            r"token_selection reducible cannot take training\.replay",
        ),
        (
            {"training": {**replay("r"), "distillation": {"teachers": ["t"]}}},
            r"training\.distillation cannot take training\.replay",
        ),
        (
            {"training": {**replay("r", share=1e-6), "tokens": 40_000}},
            r"training\.replay\.share 1e-06 is no window of 10 batches of 16: raise it",
        ),
        (
            {"training": {**replay("r", share=0.999), "tokens": 40_000}},
            r"training\.replay\.share 0\.999 is every window of 10 batches of 16: lower it",
        ),
        ({"training": replay("r", share=1.0)}, r"training\.replay\.share"),
    ],
)
def test_what_has_no_effect_or_no_meaning_is_refused(tmp_path, sections, message):
    with pytest.raises(UserError, match=message):
        recipe(tmp_path, **sections)
