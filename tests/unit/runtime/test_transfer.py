"""Folders of phases: found by hash, whatever else changes. No cluster needed."""

import json

import pytest
import yaml

from bkray.config import UserError
from bkray.runtime import transfer
from bkray.runtime.transfer import plan_phases


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
    for override in ("pool.training.lr=0.1", "pool.samples=null", f"corpus.path={tmp_path}/other.jsonl"):
        earlier = [phase.run for phase in plan(override)][:2]
        assert not {pool, middle} & set(earlier), override
    (tmp_path / "pool.jsonl").write_text(json.dumps({"text": "another"}))
    assert plan()[0].run != pool


def test_what_is_off_is_in_no_phases_key(plan, monkeypatch):
    """A key of the recipe that is new, and off, pretrains nothing anew."""
    described = []
    monkeypatch.setattr(transfer, "key_of", lambda *parts: described.append(parts) or "key")
    plan()
    for _, _, _, kept, *_ in described:
        assert kept["training"]["lr"] == 3e-3
        assert None not in kept["training"].values()


def test_a_corpus_that_is_not_there_is_named_with_its_phase(plan):
    with pytest.raises(UserError, match=r"transfer\.yaml, phase pool: corpus.path .*no such file"):
        plan("pool.corpus.path=nowhere.jsonl")
    with pytest.raises(UserError, match=r"transfer\.yaml, phase target: corpus.path .*no such file"):
        plan("corpus.path=nowhere.jsonl")
