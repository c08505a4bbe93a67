"""What a run shows of itself: the metrics log, its figures, and one HTML file a run and a sweep."""

from bkray.reporting.records import RunReport, SweepReport, Trial
from bkray.reporting.report import write_report, write_sweep_report
from bkray.reporting.runlog import RunLog

__all__ = ["RunLog", "RunReport", "SweepReport", "Trial", "write_report", "write_sweep_report"]
