"""The quickstart as it is shipped: what the README says of its model and its memory."""

import json
import time
from pathlib import Path

import psutil
import pytest

from tests.benchmarks.compare import held_bytes
from tests.forks import Command

pytestmark = [pytest.mark.end_to_end, pytest.mark.ray]

ROOT = Path(__file__).parents[2]


def test_it_predicts_better_than_a_3_gram_in_less_than_six_gigabytes(tmp_path):
    errors = tmp_path / "stderr.txt"
    command = Command(
        ["run", "pipelines/recipes/quickstart.yaml", "--out", tmp_path, "--cpus", 2], ROOT, stderr=errors
    )
    most, process = 0, psutil.Process(command.pid)
    while command.returncode is None:
        most = max(most, held_bytes(process))
        time.sleep(3)
    assert command.returncode == 0, errors.read_text()
    summary = json.loads((tmp_path / "quickstart" / "summary.json").read_text())
    bits, baselines = summary["held_out"]["bits_per_byte"], summary["baselines"]
    assert bits < 0.96 * baselines["trigram"] < baselines["unigram"]
    assert 1e9 < most < 6e9
