"""Folders of phases: found by hash, whatever else changes. No cluster needed."""

import json
import re
import shutil

import pytest
import yaml

from bkray.config import UserError, dump_yaml, load_recipe
from bkray.model import build_model
from bkray.reporting.progress import Progress
from bkray.runtime import transfer
from bkray.runtime.artifacts import write_manifest
from bkray.runtime.transfer import plan_phases
from bkray.training import export_model


@pytest.fixture
def plan(tmp_path):
    """Plan a transfer from a pool over a middle to a target; keywords change one phase's recipe."""
    for name in ("pool", "middle", "target", "other"):
        lines = (json.dumps({"text": f"{name} {number}"}) for number in range(50))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        recipe = {"name": name, "corpus": {"kind": "jsonl", "path": str(tmp_path / f"{name}.jsonl")}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    phases = [{"name": name, "recipe": f"{name}.yaml"} for name in ("pool", "middle", "target")]
    path = tmp_path / "transfer.yaml"
    path.write_text(yaml.safe_dump({"name": "all", "phases": phases}))
    return lambda *overrides: plan_phases(path, overrides, tmp_path / "out")


def test_each_phase_starts_from_the_folder_of_the_one_before(plan, tmp_path):
    pool, middle, target = plan()
    assert pool.run.parent == middle.run.parent == tmp_path / "out" / "phases"
    assert pool.run.name.startswith("pool-")
    assert middle.recipe.training.start_from == str(pool.run / "model")
    assert target.recipe.training.start_from == str(middle.run / "model")
    assert target.run == tmp_path / "out" / "all"
    held_out = [phase.recipe.cleaning.leakage for phase in (pool, middle, target)]
    assert held_out[0].held_out_of == held_out[1].held_out_of == {"target": target.recipe.corpus}
    assert held_out[2] is None


def test_what_was_pretrained_is_found_again_unless_something_of_it_changes(plan, tmp_path):
    pool, middle, target = (phase.run for phase in plan())
    again = [phase.run for phase in plan("name=again", "training.lr=0.1", "pool.training.workers=2")]
    assert again == [pool, middle, target.with_name("again")]
    changed = [phase.run for phase in plan("middle.training.lr=0.1")]
    assert changed[0] == pool
    assert changed[1] != middle
    for override in ("pool.training.lr=0.1", f"corpus.path={tmp_path}/other.jsonl", "pool.seed=1"):
        earlier = [phase.run for phase in plan(override)][:2]
        assert not {pool, middle} & set(earlier), override
    (tmp_path / "pool.jsonl").write_text(json.dumps({"text": "another"}))
    assert plan()[0].run != pool


@pytest.mark.parametrize(
    "change",
    [
        "samples=null",
        "training.log_every=7",
        "training.eval_every=33",
        "training.eval_windows=16",
        "training.checkpoint_every=7",
        "training.keep_checkpoints=5",
        "training.max_failures=5",
        "training.trackers=[tensorboard]",
        "training.profile={}",
    ],
)
def test_what_changes_no_weight_pretrains_nothing_anew(plan, change):
    pool, middle, _ = (phase.run for phase in plan())
    again = plan(f"pool.{change}", f"middle.{change}")
    assert [phase.run for phase in again[:2]] == [pool, middle]


@pytest.mark.parametrize(
    ("steering", "looks"),
    [
        ("training.schedule=loss_trend", {"log_every"}),
        ("training.schedule=plateau", {"eval_every", "eval_windows"}),
        ("curriculum={adjuster: {}}", {"eval_every", "eval_windows"}),
        ("training.on_divergence=fall_back", {"eval_every", "eval_windows", "checkpoint_every"}),
    ],
)
def test_what_something_steers_by_pretrains_anew(plan, steering, looks):
    begun = plan(f"pool.{steering}")[0].run
    every = ("log_every", "eval_every", "eval_windows", "checkpoint_every", "keep_checkpoints")
    changed = {key for key in every if plan(f"pool.{steering}", f"pool.training.{key}=7")[0].run != begun}
    assert changed == looks


def test_a_replayed_run_that_is_not_of_the_phase_before_is_part_of_the_hash(plan, tmp_path):
    share = "middle.training.replay={share: 0.5}"
    runs = [plan(change)[1].run for change in ("middle.training.workers=1", share)]
    for name in ("one", "two"):
        model = tmp_path / name / "model"
        model.mkdir(parents=True)
        for file in ("model.safetensors", "tokenizer.json"):
            (model / file).write_text(name)
        runs.append(plan(share, f"middle.training.replay.run={tmp_path / name}")[1].run)
    assert len(set(runs)) == 4
    assert plan(share, f"middle.training.replay.run={plan()[0].run}")[1].run == runs[1]
    replays = "training.replay={share: 0.5, run: pool}"
    for change in (replays, "evaluation={pool: pool}"):
        pool, _, target = plan(change)
        assert target.recipe.pool[1] == str(pool.run)
        with pytest.raises(
            UserError, match=r"phase target: \S+ pol is no folder and no phase before; did you"
        ):
            plan(change.replace("pool}", "pol}"))
    with pytest.raises(UserError, match=r"training.replay.run .*none/model holds no exported model"):
        plan(share, f"middle.training.replay.run={tmp_path / 'none'}")


def test_an_error_says_of_which_phase_it_is_and_how_its_settings_are_given(plan):
    phases = plan("pool.model={kind: import, target: 'no_such:Model'}", "middle.model=null", "model=null")
    with pytest.raises(UserError, match=r"^phase pool, whose settings are pool.key=value: .*no_such"):
        transfer._check_models(phases)


@pytest.mark.parametrize("given", ["5", "fast", "[]"])
def test_what_is_no_training_section_is_refused_in_any_phase(plan, given):
    for name in ("pool", "middle", "target"):
        with pytest.raises(UserError, match=rf"phase {name}:\n  training: "):
            plan(f"{name}.training={given}")


def test_text_is_known_by_what_it_is_wherever_it_lies(plan, tmp_path, monkeypatch):
    pool, middle, _ = (phase.run for phase in plan())
    (tmp_path / "moved").mkdir()
    for name in ("pool", "target"):
        shutil.copy2(tmp_path / f"{name}.jsonl", tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    for path in ("moved/pool.jsonl", "pool.jsonl", f"{tmp_path}/moved/pool.jsonl"):
        assert [phase.run for phase in plan(f"pool.corpus.path={path}")[:2]] == [pool, middle]
    for path in ("moved/target.jsonl", "target.jsonl"):
        assert [phase.run for phase in plan(f"corpus.path={path}")[:2]] == [pool, middle]
    held_out = "pool.cleaning.leakage={held_out_of: {target: {kind: jsonl, path: target.jsonl}}}"
    assert plan(held_out)[0].run == pool
    other = held_out.replace("path: target", "path: other")
    with pytest.raises(UserError, match=r"held_out_of.target is not the corpus of the last phase"):
        plan(other)


def test_a_run_that_is_there_keeps_what_it_began_with_but_for_where_its_text_lies(plan, tmp_path):
    pool = plan()[0]
    pool.run.mkdir(parents=True)
    (pool.run / "resolved.yaml").write_text(dump_yaml(pool.recipe))
    (tmp_path / "moved").mkdir()
    shutil.copy2(tmp_path / "pool.jsonl", tmp_path / "moved")
    moved = f"{tmp_path}/moved/pool.jsonl"
    changes = ("training.log_every=7", "samples=null", f"corpus.path={moved}", "training.workers=1")
    again = plan(*(f"pool.{change}" for change in changes))[0]
    assert again.run == pool.run
    assert again.kept == ("log_every", "samples")
    training = pool.recipe.training.model_copy(update={"workers": 1})
    corpus = pool.recipe.corpus.model_copy(update={"path": moved})
    assert again.recipe == pool.recipe.model_copy(update={"training": training, "corpus": corpus})
    assert plan()[0].kept == ()
    assert transfer.check_folder(pool.run, plan()[0].recipe) is None
    transfer._say_where(again)
    assert load_recipe(pool.run / "resolved.yaml") == again.recipe


def test_a_phase_may_learn_from_the_model_of_one_before(plan):
    distilled = "training.distillation={teachers: [pool]}"
    pool, middle, target = plan(distilled, f"middle.{distilled}")
    for phase in (middle, target):
        assert phase.recipe.training.distillation.teachers == (str(pool.run / "model"),)
    plain = plan()
    assert (pool.run, target.run) == (plain[0].run, plain[2].run)
    runs = {middle.run, plain[1].run}
    for change in ("temperature: 1.0", "weight: 0.1", "top_k: 3"):
        runs.add(plan(f"middle.{distilled[:-1]}, {change}}}")[1].run)
    assert len(runs) == 5
    with pytest.raises(UserError, match=r"phase middle: .*teachers targt is no folder and no phase before"):
        plan("middle.training.distillation={teachers: [targt]}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["training.distillation={teachers: [FOLDER]}"], r"teachers\[0\] .*tokenizer.json cannot be read"),
        (["training.distillation={teachers: [pool], top_k: 5000}"], r"top_k 5000 is more than the 4096 tok"),
        (
            ["pool.tokenizer.vocab_size=300", "training.distillation={teachers: [pool], top_k: 301}"],
            r"top_k 301 is more than the 300 tokens",
        ),
        (
            [f"{phase}model={{kind: import, target: 'no_such:Model'}}" for phase in ("pool.", "middle.", "")],
            r"importing no_such failed",
        ),
        (["training.replay={run: FOLDER/none}"], r"phase target.*replay\.run \S+none holds no finished run"),
        (["evaluation={pool: FOLDER/none}"], r"phase target.*evaluation\.pool \S+none holds no finished run"),
        (
            ["window=128", "evaluation={pool: pool}"],
            r"phase target.*evaluation\.pool \S+pool-\w+ has windows of 256, window is 128: set it alike",
        ),
    ],
)
def test_what_cannot_work_in_a_later_phase_shows_before_anything_is_trained(plan, tmp_path, changes, message):
    phases = plan(*(change.replace("FOLDER", str(tmp_path)) for change in changes))
    with pytest.raises(UserError, match=message):
        transfer._check_models(phases)


def finished(phase):
    """What the phase leaves once it is done, as far as a transfer looks for it; its model's folder."""
    model, tokenizer = phase.run / "model", phase.run / "tokenizer.json"
    phase.run.mkdir(parents=True)
    tokenizer.write_text("{}")
    export_model(model, build_model(phase.recipe.model, 8), phase.recipe, tokenizer, 8, {})
    write_manifest(model, {"key": "k"})
    (phase.run / "report.html").write_text("")
    return model


def test_a_phase_whose_model_is_gone_or_cut_is_not_done(plan):
    pool, _, target = plan()
    model = finished(pool)
    assert transfer._is_done(pool)
    assert not transfer._is_done(target)
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-1])
    assert not transfer._is_done(pool)
    (model / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(
        UserError, match=r"phase pool, \S+model: model.safetensors is not the file .*made anew"
    ):
        transfer._is_done(pool)
    (model / "model.safetensors").write_bytes(weights)
    assert transfer._is_done(pool)
    (pool.run / "report.html").unlink()
    assert not transfer._is_done(pool)
    shutil.rmtree(model)
    (pool.run / "report.html").write_text("")
    assert not transfer._is_done(pool)


def test_what_is_made_anew_is_told_what_differs_from_what_is_there(plan, tmp_path, capsys):
    def said(*changes):
        transfer._say_why_anew(plan(*changes)[0], Progress())
        return " ".join(capsys.readouterr().err.split())

    assert said() == ""
    for changes in ((), ("pool.training.lr=0.1", "pool.training.tokens=9000")):
        run = plan(*changes)[0].run
        run.mkdir(parents=True)
        (run / "resolved.yaml").write_text(dump_yaml(plan(*changes)[0].recipe))
    assert said() == said("pool.training.eval_every=7") == ""
    there = plan()[0].run.name
    assert re.search(
        rf"pool is made anew: \S+{there} has another training.weight_decay$",
        said("pool.training.weight_decay=0.3"),
    )
    assert said(f"corpus.path={tmp_path}/other.jsonl").endswith(
        "another cleaning.leakage.held_out_of.target.path"
    )
    (plan("pool.seed=3")[0].run).mkdir()  # begun, and nothing in it yet
    (tmp_path / "pool.jsonl").write_text(json.dumps({"text": "another"}))
    assert said().endswith("has another text")


def test_models_that_are_still_to_be_made_are_not_missed(plan):
    transfer._check_models(plan("training.distillation={teachers: [pool, middle]}"))


def test_a_corpus_that_is_not_there_is_named_with_its_phase(plan):
    with pytest.raises(UserError, match=r"transfer\.yaml, phase pool: corpus.path .*no such file"):
        plan("pool.corpus.path=nowhere.jsonl")
    with pytest.raises(UserError, match=r"transfer\.yaml, phase target: corpus.path .*no such file"):
        plan("corpus.path=nowhere.jsonl")
