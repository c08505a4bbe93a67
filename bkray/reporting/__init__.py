"""What a run shows of itself: the metrics log, its figures, its HTML pages.

`bkray.reporting.report` writes the pages; it is not imported here, so that training workers start without
matplotlib.
"""

from bkray.reporting.records import (
    ActiveArm,
    ActiveReport,
    ActiveRound,
    ComparisonArm,
    ComparisonReport,
    ComparisonRow,
    RunReport,
    SweepReport,
    TransferPhase,
    TransferReport,
    Trial,
)
from bkray.reporting.runlog import RunLog

__all__ = [
    "ActiveArm",
    "ActiveReport",
    "ActiveRound",
    "ComparisonArm",
    "ComparisonReport",
    "ComparisonRow",
    "RunLog",
    "RunReport",
    "SweepReport",
    "TransferPhase",
    "TransferReport",
    "Trial",
]
