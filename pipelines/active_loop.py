"""Active learning against its controls: python -m pipelines.active_loop FILE [key=value …]."""

from bkray.runtime.active import run_active
from bkray.runtime.exits import exit_codes
from bkray.runtime.submission import arguments

if __name__ == "__main__":
    given = arguments(__doc__, "loop", "rounds=2")
    with exit_codes():
        run_active(given.file, tuple(given.overrides), given.out, given.cpus)
