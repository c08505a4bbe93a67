import io
import time

import pytest
from rich.console import Console

from bkray.reporting import progress as module
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


@pytest.mark.parametrize("terminal", [True, False])
def test_a_stage_that_says_nothing_still_shows_that_it_is_at_work(monkeypatch, terminal):
    monkeypatch.setattr(module, "_TICK_S", 0.01)
    monkeypatch.setattr(module, "_QUIET_INTERVAL_S", 0.02)
    monkeypatch.setattr(module.Line, "seconds", 75.0)
    out = io.StringIO()
    shown = "scored          75 s" if terminal else "  scored: at work for 75 s\n"
    with Progress(Console(file=out, force_terminal=terminal, width=100)).stage("scored"):
        started = time.monotonic()
        while shown not in out.getvalue():
            assert time.monotonic() - started < 30, out.getvalue()
            time.sleep(0.01)
