import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bkray():
    """Call the command line; returns the finished process."""

    def call(*arguments, **options):
        command = [sys.executable, "-m", "bkray.cli", *map(str, arguments)]
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False, **options
        )

    return call
