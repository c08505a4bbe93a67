"""Workers of a local Ray as forks of one process that has done their imports.

Ray starts every worker as a new Python that imports Ray twice, then torch and this package: seconds each, for
two dozen workers a run. `start_worker.py` stands in for Ray's `setup_worker.py`:

    a job's first worker ─► imports what workers use and becomes the fork server, which forks that worker too
    every other one ─► asks the server for a fork in its place, and ends

Nothing else of Ray's changes. Memory that the imports take is shared by all workers. Linux only: elsewhere
forks are not safe.
"""

from pathlib import Path

START_WORKER = Path(__file__).with_name("start_worker.py")
"""The file for Ray's parameter `setup_worker_path`."""
