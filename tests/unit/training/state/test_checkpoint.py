import logging
import shutil
import subprocess
import sys
import time
from collections import OrderedDict

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


def test_another_runs_checkpoint_is_named_and_the_own_one_before_it_used(tmp_path, caplog):
    Checkpointer(tmp_path, "one").save(1, {"step": 1})
    Checkpointer(tmp_path, "two").save(2, {"step": 2})
    Checkpointer(tmp_path, "one").check()
    with caplog.at_level(logging.WARNING):
        assert Checkpointer(tmp_path, "one").load() == {"step": 1}
    assert "step-00000002 belongs to another run" in caplog.text


def test_another_runs_checkpoints_take_no_place_of_ones_own_and_stay(tmp_path):
    other = Checkpointer(tmp_path, "two", keep=2)
    other.save(8, {"step": 8}, validation_loss=0.1)
    other.save(9, {"step": 9}, validation_loss=0.1)
    own = Checkpointer(tmp_path, "one", keep=1)
    for step in (1, 2):
        own.save(step, {"step": step}, validation_loss=1.0 / step)
    assert own.load() == {"step": 2}
    assert own.best() == tmp_path / "step-00000002"
    own.drop_after(1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000008", "step-00000009"]


def test_where_the_own_one_is_damaged_another_runs_is_still_refused(tmp_path):
    Checkpointer(tmp_path, "two").save(1, {"step": 1})
    own = Checkpointer(tmp_path, "one")
    (own.save(2, {"step": 2}) / "state.pt").write_bytes(b"cut")
    with pytest.raises(UserError, match="belongs to another run"):
        own.load()


def test_those_beyond_a_step_can_be_dropped(tmp_path):
    saver = Checkpointer(tmp_path, "run", keep=3)
    for step in (7, 8, 12):
        saver.save(step, {"step": step}, validation_loss=1.0 / step)
    saver.drop_after(8)
    assert saver.load() == {"step": 8}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000007", "step-00000008"]
    saver.save(9, {"step": 9})
    assert saver.load() == {"step": 9}


def test_a_copy_that_was_put_aside_is_left_alone_and_a_longer_number_is_a_later_step(tmp_path):
    saver = Checkpointer(tmp_path, "run", keep=1)
    shutil.copytree(saver.save(1, {"step": 1}), tmp_path / "step-00000001.mine")
    for step in (99_999_999, 100_000_000):
        saver.save(step, {"step": step})
        assert saver.load() == {"step": step}
    saver.drop_after(5)
    assert saver.load() is None
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.mine"]


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


def steps(folder):
    return [int(path.name[5:]) for path in sorted(folder.glob("step-*"))]


def test_the_best_by_validation_loss_is_kept_beside_the_last(tmp_path):
    saver = Checkpointer(tmp_path, "run", keep=2)
    for step, loss in enumerate([3.0, 1.0, 2.0, None, float("nan"), 1.5, 1.5], start=1):
        saver.save(step, {"step": step}, loss)
    assert saver.best() == tmp_path / "step-00000002"
    assert steps(tmp_path) == [2, 6, 7]
    (tmp_path / "step-00000002" / "manifest.json").write_text("{")
    assert saver.best() == tmp_path / "step-00000006"
    assert Checkpointer(tmp_path / "none", "run").best() is None


def test_what_is_written_behind_is_the_state_of_the_moment_of_saving(tmp_path, monkeypatch):
    saver = Checkpointer(tmp_path, "run")
    write = saver.save
    monkeypatch.setattr(saver, "save", lambda *given: (time.sleep(0.2), write(*given))[1])
    weights = torch.ones(3)
    state = {"model": OrderedDict(a=weights, tied=weights, view=weights[:2]), "rates": [1.0], "step": 1}
    saver.save_behind(1, state, 2.0)
    assert steps(tmp_path) == [], "it was not written behind"
    weights.fill_(5.0)
    state["rates"].append(2.0)
    state["step"] = 2
    saver.wait()
    loaded = saver.load()
    assert loaded["model"]["a"].tolist() == [1.0] * 3
    assert loaded["model"]["view"].tolist() == [1.0] * 2
    assert loaded["model"]["a"].data_ptr() == loaded["model"]["tied"].data_ptr(), "tied tensors lie twice"
    assert (loaded["rates"], loaded["step"]) == ([1.0], 1)
    assert saver.best() == tmp_path / "step-00000001"


def child(source, folder):
    """Run Python source in a process of its own; `folder` is its first argument."""
    command = [sys.executable, "-c", source, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


FULL = """
import pathlib, resource, sys, torch
from bkray.config import UserError
from bkray.training import Checkpointer
folder = pathlib.Path(sys.argv[1])
saver = Checkpointer(folder, "run")
saver.save(1, {"weights": torch.zeros(100)})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # from here on files end there
saver.save_behind(2, {"weights": torch.zeros(100_000)})
try:
    saver.save_behind(3, {"weights": torch.zeros(100)})
except UserError as error:
    print(error)
assert saver.load()["weights"].shape == (100,)
print(sorted(path.name for path in folder.iterdir()))
"""


def test_a_disk_that_takes_no_more_is_said_at_the_next_save_and_the_last_good_one_is_kept(tmp_path):
    finished = child(FULL, tmp_path)
    assert finished.returncode == 0, finished.stderr
    said, left = finished.stdout.splitlines()
    assert "step-00000002: the checkpoint could not be written ([Errno 27] File too large)" in said
    assert "the last good one is kept: free some space" in said
    assert left == "['step-00000001']"


KILLED = """
import os, pathlib, signal, sys, torch
from bkray.training import Checkpointer
folder = pathlib.Path(sys.argv[1])

def saved_with_a_kill_at(last):
    count = 0
    def watch(event, arguments):
        nonlocal count
        if event in {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}:
            count += str(folder) in str(arguments[0]) or event in {"os.remove", "os.rmdir"}
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)
    saver = Checkpointer(folder, "run", keep=1)
    newest = saver.load()["step"]
    saver.save_behind(newest + 1, {"step": newest + 1, "weights": torch.zeros(1000)})
    saver.wait()

Checkpointer(folder, "run").save(0, {"step": 0})
for last in range(1, 100):
    if not (process := os.fork()):
        saved_with_a_kill_at(last)
        os._exit(0)
    killed = os.WIFSIGNALED(os.waitpid(process, 0)[1])
    there = list(folder.glob("step-*"))
    assert all({"state.pt", "manifest.json"} <= set(os.listdir(path)) for path in there)
    print(Checkpointer(folder, "run").load()["step"], len(there))
    if not killed:
        break
"""


def test_a_kill_between_any_two_writes_leaves_a_whole_checkpoint(tmp_path):
    finished = child(KILLED, tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "damaged" not in finished.stderr
    lines = [tuple(map(int, line.split())) for line in finished.stdout.splitlines()]
    assert 12 < len(lines) < 99, "there is a kill at each write, and then one run without"
    newest = [step for step, _ in lines]
    assert newest == sorted(newest)
    assert newest[0] == 0, "the first kill came before anything was written"
    assert newest[-1] == newest[-2] + 1
    assert [path.name for path in tmp_path.iterdir()] == [f"step-{newest[-1]:08d}"], "what a kill left stays"
    assert {count for _, count in lines} == {1, 2}, "keep is 1; the old one goes after the new one is there"
