"""The page of a transfer."""

import re

from bkray.reporting import TransferPhase, TransferReport
from bkray.reporting.report import write_transfer_report


def test_transfer_has_every_phase_and_what_it_did_to_the_text_before(written, parse, check_self_contained):
    pool = {"before": 2.1, "after": 2.31}
    phases = [
        TransferPhase(
            "pretrain",
            "../phases/pool-1",
            400,
            4_000_000,
            3e15,
            300.0,
            None,
            2.1,
            leaked={"equal, held out of it": 3, "near duplicate, held out of it": 4},
        ),
        TransferPhase("tune", ".", 50, 500_000, 1e15, 60.0, 1.9, 1.7, pool),
    ]
    html = written(write_transfer_report, TransferReport("both & all", phases))
    check_self_contained(re.sub(r'href="[^"]*/report.html"', "", html))  # each phase has a page of its own
    page = parse(html)
    assert page.row("pretrain")[1:] == [
        *("400", "4,000,000", "7", "3.00 × 10¹⁵", "75.0 %", "5 min 00 s"),
        *("–", "2.100", "–", "–"),
    ]
    assert page.row("tune")[3:] == [
        "–",
        "1.00 × 10¹⁵",
        "25.0 %",
        "1 min 00 s",
        "1.900",
        "1.700",
        "2.100",
        "2.310",
    ]
    assert ("a", "href", "../phases/pool-1/report.html") in page.attributes
    assert "All FLOPs4.00 × 10¹⁵" in page.text.replace("\n", "")
    assert page.tags.count("svg") == 3
