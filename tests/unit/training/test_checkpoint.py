import logging

import pytest
import torch

from bkray.config import UserError
from bkray.training import Checkpointer


def test_the_newest_is_loaded_and_the_last_two_are_kept(tmp_path):
    saver = Checkpointer(tmp_path, "run", keep=2)
    for step in (1, 2, 3):
        saver.save(step, {"step": step, "weights": torch.full((3,), float(step))})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    assert saver.load()["weights"].tolist() == [3.0, 3.0, 3.0]


@pytest.mark.parametrize("damage", ["truncate", "flip", "no manifest"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, caplog, damage):
    saver = Checkpointer(tmp_path, "run")
    saver.save(1, {"step": 1})
    newest = saver.save(2, {"step": 2})
    if damage == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        data = bytearray((newest / "state.pt").read_bytes())
        data = data[: len(data) // 2] if damage == "truncate" else data[:100] + b"\xff" + data[101:]
        (newest / "state.pt").write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert saver.load() == {"step": 1}
    assert "step-00000002 is damaged" in caplog.text


def test_another_runs_checkpoint_is_refused(tmp_path):
    Checkpointer(tmp_path, "one").save(1, {"step": 1})
    with pytest.raises(UserError, match="belongs to another run"):
        Checkpointer(tmp_path, "two").load()
    with pytest.raises(UserError, match="belongs to another run"):
        Checkpointer(tmp_path, "two").check()
    Checkpointer(tmp_path, "one").check()


def test_foreign_code_is_not_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    saver = Checkpointer(tmp_path, "run")
    saver.save(1, {"step": 1})
    saver.save(2, {"payload": Evil()})
    assert saver.load() == {"step": 1}


def test_nothing_there_is_none(tmp_path):
    assert Checkpointer(tmp_path / "none", "run").load() is None
