"""`training.profile`: a trace of some steps by torch.profiler, for chrome://tracing or ui.perfetto.dev."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from bkray.config.training import Profile


class Tracer:
    """Writes `folder`/rank-R.json after the last step to trace; without settings it does nothing."""

    def __init__(self, settings: Profile | None, folder: Path | None, rank: int) -> None:
        self.settings, self.folder, self.rank = settings, folder, rank
        self._profile: torch.profiler.profile | None = None

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Step `number` and what follows it until the next call."""
        if self.settings and self._profile is None and number == self.settings.start:
            self._profile = torch.profiler.profile()
            self._profile.start()
        yield
        if self.settings and self._profile and number + 1 == self.settings.start + self.settings.steps:
            self._profile.stop()
            self._write(self._profile)
            self._profile = None

    def _write(self, profile: torch.profiler.profile) -> None:
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"rank-{self.rank}.json"
        partial = path.with_name(f".partial-{path.name}")
        profile.export_chrome_trace(str(partial))
        os.replace(partial, path)
