import io

import pytest
from rich.console import Console

from bkray.reporting.progress import Progress


def test_off_a_terminal_every_finished_stage_is_one_line():
    out = io.StringIO()
    progress = Progress(Console(file=out, width=100))
    with progress.stage("windows") as line:
        line.update("half way")
        line.result = "1,234 windows [of 256]"
    progress.say("done")
    first, second = out.getvalue().splitlines()
    assert first.startswith("✓ windows       1,234 windows [of 256]  (0.")
    assert second == "done"


def test_a_failed_stage_has_no_finished_line():
    out = io.StringIO()
    with pytest.raises(KeyError), Progress(Console(file=out)).stage("windows"):
        raise KeyError
    assert out.getvalue() == ""


def test_on_a_terminal_the_line_is_live():
    out = io.StringIO()
    progress = Progress(Console(file=out, force_terminal=True, width=100))
    with progress.stage("model") as line:
        line.update("step 10 of 20")
        assert line.seconds >= 0
        line.result = "20 steps"
    assert "✓ model" in out.getvalue()
