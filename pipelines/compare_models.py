"""Compare models, or any arms of one recipe: python -m pipelines.compare_models COMPARISON [key=value …]."""

import argparse
from pathlib import Path

from bkray.runtime.comparison import run_comparison
from bkray.runtime.exits import exit_codes
from bkray.runtime.submission import default_out

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("comparison", type=Path, help="YAML file of the comparison")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example seeds=[0,1]")
    parser.add_argument(
        "--out", type=Path, default=default_out(), help="folder for runs, on a disk all nodes reach"
    )
    parser.add_argument(
        "--cpus", type=int, help="logical CPUs of a local cluster (default: the cores there are)"
    )
    given = parser.parse_args()
    with exit_codes():
        run_comparison(given.comparison, tuple(given.overrides), given.out.absolute(), given.cpus)
