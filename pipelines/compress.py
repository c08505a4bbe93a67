"""Compress the model of a finished run: python -m pipelines.compress RUN_FOLDER [METHOD …] [--cpus N]."""

import argparse
from pathlib import Path

from bkray.runtime.compression import compress
from bkray.runtime.exits import exit_codes

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of a finished run, on a disk all nodes reach")
    parser.add_argument(
        "methods", nargs="*", help="int8, int4, int4:32, prune:SHARE, layers:N, prune:SHARE+int8"
    )
    parser.add_argument("--cpus", type=int, help="logical CPUs of a local cluster")
    given = parser.parse_args()
    with exit_codes():
        print(compress(given.folder.absolute(), tuple(given.methods), given.cpus))
