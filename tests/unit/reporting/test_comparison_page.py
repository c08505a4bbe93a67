"""The page of a comparison."""

import math

from bkray.reporting import ComparisonArm, ComparisonReport, ComparisonRow
from bkray.reporting.report import write_comparison_report

HOSTILE = 'if a < b && "c": <script>alert(1)</script></pre>{{ 7 * 7 }}'
COMPARISON = ComparisonReport(
    name="models & more",
    reference="bk",
    arms=[
        ComparisonArm("bk", 2_430_000, 0.01, {0.005: 1.9, 0.01: 1.8, 0.02: 1.85}, 0.4, 1.0, 12.0),
        ComparisonArm("gru", 2_440_000, 0.02, {0.005: math.inf, 0.02: 1.9}, 0.6, 1.5, 75.0),
    ],
    rows=[
        ComparisonRow("steps", 400, "bk", 400, 1.8, [1.79, 1.81], None, 160.0, 1e13),
        ComparisonRow("steps", 400, "gru", 400, 1.9, [1.9, 1.9], (0.1, 0.05, 0.15), 240.0, 1e13),
        ComparisonRow("seconds", 400, "bk", 400, 1.8, [1.79, 1.81], None, 160.0, 1e13),
        ComparisonRow("seconds", 400, "gru", 267, error=f"diverged {HOSTILE}"),
    ],
    curves={
        arm: [{"step": step, "seconds": step / 2, "validation_loss": 9 - step / 100} for step in (100, 200)]
        for arm in ("bk", "gru")
    },
)


def test_comparison_has_every_arm_its_interval_and_what_failed(written, parse, check_self_contained):
    html = written(write_comparison_report, COMPARISON)
    check_self_contained(html)
    page = parse(html)
    assert page.row("gru")[1:6] == ["400", "1.9000", "+0.1000", "+0.0500 … +0.1500", "1.9000 1.9000"]
    assert page.row("bk")[3:5] == ["–", "–"]
    assert f"diverged {HOSTILE}" in page.text
    assert "The time of 400 steps of bk" in page.text
    assert "0.02 (the edge of what was tried)" in " ".join(page.text.split())
    assert "0.005: not finite" in page.text
    assert page.tags.count("svg") == 3  # differences at equal steps; two panels of curves
    assert "1.500" in page.text
