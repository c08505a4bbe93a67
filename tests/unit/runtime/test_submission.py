"""The last lines of a command."""

from pathlib import Path

import pytest

from bkray.runtime.pipeline import RunResult
from bkray.runtime.submission import closing_lines

LEDGER = {"total_flops": 2e12, "tokens_seen": 4000, "unique_tokens": 3000, "wall_s": 12.0}


def lines(**start):
    held_out = {"bits_per_byte": 1.75, "split": "test"}
    baselines = {"unigram": 4.5, "trigram": 2.5}
    return closing_lines(
        RunResult(Path("r"), {}, {"held_out": held_out, "baselines": baselines, "ledger": LEDGER, **start})
    )


@pytest.mark.parametrize(("before", "worse"), [(2.0, False), (1.75, False), (1.5, True)])
def test_a_tuned_model_is_held_against_the_one_that_it_started_from(before, worse):
    shown = lines(start={"bits_per_byte": before})
    assert f"1.7500 bits per byte on test (before tuning {before:.4f}, unigram 4.5000, 3-gram" in shown[0]
    assert any("tuning made it worse: lower training.lr" in line for line in shown) == worse


def test_a_model_from_scratch_has_no_figure_before():
    assert len(lines()) == 3
    assert "bits per byte on test (unigram 4.5000, 3-gram 2.5000)" in lines()[0]
    assert closing_lines(RunResult(Path("r"), {}, None)) == ["ready: r"]
