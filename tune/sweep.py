"""Run a sweep: python -m tune.sweep SWEEP [key=value …] [--out DIR] [--cpus N]."""

from bkray.runtime.exits import exit_codes
from bkray.runtime.submission import arguments
from bkray.runtime.sweep import run_sweep

if __name__ == "__main__":
    given = arguments(__doc__, "sweep", "trials=12")
    with exit_codes():
        run_sweep(given.file, tuple(given.overrides), given.out, given.cpus)
