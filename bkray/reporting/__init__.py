"""What a run shows of itself: the metrics log, its figures, one HTML file a run, sweep or comparison.

`bkray.reporting.report` writes the pages; it is not imported here, so that training workers start without
matplotlib.
"""

from bkray.reporting.records import (
    ComparisonArm,
    ComparisonReport,
    ComparisonRow,
    RunReport,
    SweepReport,
    Trial,
)
from bkray.reporting.runlog import RunLog

__all__ = [
    "ComparisonArm",
    "ComparisonReport",
    "ComparisonRow",
    "RunLog",
    "RunReport",
    "SweepReport",
    "Trial",
]
