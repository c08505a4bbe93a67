"""What a run shows of itself: the metrics log, its figures, and one HTML file a run and a sweep.

`bkray.reporting.report` writes the pages; it is not imported here, so that training workers start without
matplotlib.
"""

from bkray.reporting.records import RunReport, SweepReport, Trial
from bkray.reporting.runlog import RunLog

__all__ = ["RunLog", "RunReport", "SweepReport", "Trial"]
