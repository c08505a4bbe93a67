import gc
from importlib.metadata import version

import ray
from typer.testing import CliRunner

from bkray.cli import app


def test_it_says_its_version():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"bkray {version('bkray')}\n")


def test_without_arguments_it_shows_its_commands():
    shown = CliRunner().invoke(app, []).output
    assert all(command in shown for command in ("run", "sweep", "compare", "compress", "generate", "doctor"))


def test_the_plan_shows_stages_and_the_budget_without_starting_ray(small, tmp_path):
    before = ray.is_initialized()  # by the tests of another folder
    result = CliRunner().invoke(app, ["plan", str(small), "--out", str(tmp_path / "out"), "--cpus", "1"])
    assert result.exit_code == 0, result.output
    assert ray.is_initialized() == before
    assert gc.isenabled()
    assert not (tmp_path / "out").exists()
    rows = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert "to run" in rows["scored"]
    assert "1 actors x 0.5 CPU" in rows["scored"]
    assert "2 workers x 1 CPU" in rows["model"]
    assert "MB of disk" in rows["corpus"]
    assert "53 steps of 8 windows of 48 tokens" in rows["training"]
    assert "2 workers x 1 CPU = 2 of 1: does not fit: set training.workers=1 or --cpus 2" in rows["CPUs"]
