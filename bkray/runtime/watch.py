"""A local cluster's raylet, watched: where it dies, the run ends at once, with one message.

Ray's driver itself goes on waiting, and fails about 20 s later with a traceback.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray._private import worker

from bkray.config import UserError

_INTERVAL_S = 0.2


@contextmanager
def watching() -> Iterator[None]:
    """Raise UserError out of the block soon after the raylet that this process has started is gone.

    For the main thread, which alone can be interrupted: Ray's own waiting ends for a KeyboardInterrupt only,
    and SIGINT may be ignored below a background job.
    """
    node: Any = worker._global_node
    raylet, ended = node.all_processes["raylet"][0].process, threading.Event()

    def watch() -> None:
        while not ended.wait(_INTERVAL_S):
            if raylet.poll() is not None:
                signal.pthread_kill(main, signal.SIGUSR1)
                return

    main = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    except BaseException as error:
        if (code := raylet.poll()) is None:
            raise
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        raise UserError(
            f"Ray's raylet {how}: what is finished is kept, run the same command again to go on; where "
            "memory ran out, close other programs or set --cpus lower"
        ) from error
    finally:
        ended.set()
        watcher.join()
        signal.signal(signal.SIGUSR1, before)
