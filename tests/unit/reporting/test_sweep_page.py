"""The page of a sweep."""

import pytest

from bkray.reporting import SweepReport, Trial
from bkray.reporting.report import write_sweep_report

HOSTILE = 'if a < b && "c": <script>alert(1)</script></pre>{{ 7 * 7 }}'
SWEEP = SweepReport(
    name="curriculum",
    trials=[
        Trial("off", {"training.lr": 3e-3}, "finished", 1.5, 2e15, 100.0, baseline=True),
        Trial("t1", {"training.lr": 0.3}, "failed", seconds=3.0, error=f"diverged: {HOSTILE}"),
        Trial("t2", {"training.lr": 1e-3, "selection.keep": None}, "stopped early", 1.7, 5e14, 30.0),
        Trial(
            "t3",
            {"training.lr": 2e-3, "selection.keep": 0.5},
            "finished",
            1.4,
            1e15,
            90.0,
            ratio=(0.93, 0.9, 0.96),
        ),
    ],
    winner="t3",
    recipe="name: winner\n",
)


@pytest.fixture(scope="module")
def html(written):
    return written(write_sweep_report, SWEEP)


def test_sweep_report_is_one_self_contained_file(html, check_self_contained):
    check_self_contained(html)


def test_sweep_table_is_ranked_and_keeps_failures(html, parse):
    page = parse(html)
    assert [row[0] for row in page.rows[1:]] == ["t3 winner", "off baseline", "t2", "t1"]
    assert page.row("t3") == [
        "t3 winner", "1.4000", "0.930 0.900 – 0.960", "1.00 × 10¹⁵", "1 min 30 s", "finished", "0.5", "0.002",
    ]  # fmt: skip
    assert page.row("t2")[-2:] == ["null", "0.001"]
    assert page.row("t1") == ["t1", "–", "–", "–", "3.0 s", "failed", "–", "0.3"]
    assert f"t1: diverged: {HOSTILE}" in page.text
    assert page.text.index("1.400") < page.text.index("1.500") < page.text.index("Trials")
    assert "name: winner" in page.text


def test_sweep_in_which_everything_failed(written, parse, check_self_contained):
    trials = [Trial("t1", {}, "failed", error="out of memory")]
    html = written(write_sweep_report, SweepReport("sad", trials))
    check_self_contained(html)
    assert "t1: out of memory" in parse(html).text
    assert "svg" not in parse(html).tags
    assert "Recipe" not in parse(html).text


def test_an_unknown_winner_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'t9'"):
        write_sweep_report(tmp_path / "sweep.html", SweepReport("s", SWEEP.trials, winner="t9"))
