"""What forked workers save: python tests/benchmarks/bench_worker_start.py [ROUNDS]

A whole `bkray run`, of the quickstart on few documents and few tokens, with Ray's workers as forks of one
process and started as Ray does. The two take turns; printed are every round's seconds and memory, and the
ratios of the sums. Memory is the largest sum over all processes, pages that several share counted once. About
three minutes a round on two slow cores.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import psutil
from compare import held_bytes

RECIPE = Path(__file__).parents[2] / "pipelines" / "recipes" / "quickstart.yaml"
SMALL = ["corpus.packages=[networkx]", "training.tokens=100000", "proxy.tokens=50000"]
STARTED_BY_RAY = """
from bkray.cli import main
from bkray.runtime import cluster
del cluster._LOCAL_NODE["setup_worker_path"]
main()
"""
LOOK_S = 1.0


def measure(command: list[str], **variables: str) -> tuple[float, float]:
    """Seconds and largest GiB of one run."""
    with tempfile.TemporaryDirectory() as out:
        start, most = time.perf_counter(), 0
        run = [sys.executable, *command, "run", str(RECIPE), "--out", out, *SMALL]
        with open(Path(out, "log"), "w+") as log:
            process = psutil.Popen(run, stdout=log, stderr=log, env={**os.environ, **variables})
            while process.poll() is None:
                most = max(most, held_bytes(process))
                try:
                    process.wait(timeout=LOOK_S)
                except psutil.TimeoutExpired:
                    continue
            log.seek(0)
            assert process.returncode == 0, log.read()
        return time.perf_counter() - start, most / (1 << 30)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    arms = {
        "forks": (["-m", "bkray.cli"], {}),
        "started by Ray": (["-c", STARTED_BY_RAY], {"RAY_prestart_worker_first_driver": "1"}),
    }
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for number in range(rounds):
        for name, (command, variables) in list(arms.items())[:: -1 if number % 2 else 1]:
            seen[name].append(measure(command, **variables))
            print(f"{name:16} {seen[name][-1][0]:6.1f} s  {seen[name][-1][1]:5.2f} GiB", flush=True)
    sums = {name: [sum(each) for each in zip(*values, strict=True)] for name, values in seen.items()}
    seconds, held = (forked / plain for forked, plain in zip(*sums.values(), strict=True))
    print(f"forks / started by Ray: {seconds:.2f} of the time, {held:.2f} of the memory")


if __name__ == "__main__":
    main()
