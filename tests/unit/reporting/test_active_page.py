"""The page of active learning."""

import re

import numpy as np

from bkray.reporting import ActiveArm, ActiveReport, ActiveRound
from bkray.reporting.report import write_active_report

ACTIVE = ActiveReport(
    name="loop & more",
    kind="entropy",
    reference="random",
    seeds=[4, 9],
    arms=[
        ActiveArm(
            "entropy",
            300,
            1.9,
            [1.8, 2.0],
            250_000.0,
            {"training": {"flops": 6e12, "tokens": 6e5, "seconds": 60.0}},
            [
                ActiveRound(100, 100, 0, 2e12, 0.0, 20.0, 5.0),
                ActiveRound(150, 200, 400, 4e12, 1e12, 40.0, 4.5),
            ],
            (-0.1, -0.15, -0.05),
        ),
        ActiveArm(
            "random",
            350,
            2.0,
            [1.95, 2.05],
            260_000.0,
            {"training": {"flops": 7e12, "tokens": 7e5, "seconds": 70.0}},
            [ActiveRound(100, 150, 0, 3e12, 0.0, 25.0, 5.0), ActiveRound(150, 200, 0, 4e12, 0.0, 45.0, 4.6)],
        ),
        ActiveArm(
            "all",
            350,
            2.01,
            [1.96, 2.06],
            700_000.0,
            {"training": {"flops": 7e12, "tokens": 7e5, "seconds": 70.0}},
            [ActiveRound(400, 350, 0, 7e12, 0.0, 70.0, 4.6)],
            (0.01, -0.02, 0.04),
        ),
    ],
    curves={
        arm: [{"step": step, "flops": step * 2e10, "validation_loss": 9 - step / 100} for step in (100, 300)]
        for arm in ("entropy", "random", "all")
    },
    pools=[(np.linspace(4.0, 5.0, 400), np.linspace(4.9, 5.0, 50))],
)


def test_active_learning_has_every_arm_its_interval_and_what_each_round_cost(
    written, parse, check_self_contained
):
    html = written(write_active_report, ACTIVE)
    check_self_contained(html)
    page = parse(html)
    assert page.row("entropy")[1:] == [
        *("300", "150", "250,000", "1.9000", "-0.1000", "-0.1500 … -0.0500", "7.00 × 10¹²", "14.3 %"),
        "1 min 00 s",
    ]
    assert page.row("random")[5:7] == ["–", "–"]
    assert ["1", "400", "150", "200", "4.00 × 10¹²", "1.00 × 10¹²", "40.0 s", "4.500"] in page.rows
    assert ["all", "1.9600", "2.0600"] in page.rows
    assert "loop & more" in page.text
    shown = re.findall(r'aria-label="([^"]*)"', html)
    assert shown == [
        "Differences at equal total cost",
        "Validation loss of every arm against its cost",
        "Cost of entropy by round",
        "Cost of random by round",
        "Uncertainty of the pool of round 1",
    ]
