"""Run a sweep: python -m tune.sweep SWEEP [key=value …] [--out DIR] [--cpus N]."""

import argparse
from pathlib import Path

from bkray.runtime.exits import exit_codes
from bkray.runtime.submission import default_out
from bkray.runtime.sweep import run_sweep

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path, help="YAML file of the sweep")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example trials=12")
    parser.add_argument(
        "--out", type=Path, default=default_out(), help="folder for runs, on a disk all nodes reach"
    )
    parser.add_argument(
        "--cpus", type=int, help="logical CPUs of a local cluster (default: the cores there are)"
    )
    given = parser.parse_args()
    with exit_codes():
        run_sweep(given.sweep, tuple(given.overrides), given.out.absolute(), given.cpus)
