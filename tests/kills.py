"""Processes of this process's Ray cluster that tests kill at their work."""

import contextlib
import os
import signal
import threading
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def killing(wanted):
    """In the block SIGKILL, one at a time, to a process whose name begins with one that `wanted` gives.

    `wanted` gets the names of those that were killed, which are yielded; it gives none where there is nothing
    to kill.
    """
    killed, ended = [], threading.Event()

    def kill():
        while not ended.wait(0.005):
            names = tuple(wanted(killed))
            for process, name in list(processes(*names).items())[:1] if names else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
                    killed.append(name)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield killed
    finally:
        ended.set()
        killer.join()


def processes(*names):
    """Ids and names of the processes of this cluster whose name, which Ray gives them, begins so."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            name = path.read_bytes().decode(errors="replace")
            if name.startswith(names) and os.getpid() in _ancestors(int(path.parent.name)):
                found[int(path.parent.name)] = name.split("\0")[0]
        except OSError:
            continue  # it has just ended
    return dict(sorted(found.items()))


def _ancestors(process):
    while process > 1:
        process = int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])
        yield process
