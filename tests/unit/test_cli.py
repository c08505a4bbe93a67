from importlib.metadata import version

from typer.testing import CliRunner

from bkray.cli import app


def test_it_says_its_version():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"bkray {version('bkray')}\n")


def test_without_arguments_it_shows_its_commands():
    shown = CliRunner().invoke(app, []).output
    assert all(command in shown for command in ("run", "sweep", "compare", "compress", "generate", "doctor"))
