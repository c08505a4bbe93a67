"""Artifacts: a folder a stage's result, complete or not there.

    <root>/<stage>-<key>/part-00000.parquet …  rejects.parquet  manifest.json

The key is a hash of the stage's configuration and of its inputs' keys, so a finished stage is found again and
an edited recipe makes a new folder. Everything is written to a hidden folder that a rename makes visible.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifact:
    """A finished stage's folder and its manifest."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def find(cls, path: Path, key: str) -> Artifact | None:
        """The artifact at `path`, or None where it is absent or made by another configuration.

        One with a file that is missing or of another size than its manifest says is named in a warning and
        counts as absent.
        """
        try:
            manifest = json.loads((path / "manifest.json").read_text())
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            return None
        if manifest.get("key") != key:
            return None
        if changed := [name for name, size in manifest["files"].items() if _size(path / name) != size]:
            _say_damaged(path, ", ".join(changed))
            return None
        return cls(path, manifest)

    @property
    def parts(self) -> list[Path]:
        return sorted(self.path.glob("part-*.parquet"))

    @property
    def rows(self) -> int:
        return self.manifest["rows"]

    @property
    def splits(self) -> dict[str, int]:
        """Rows of each split, where the stage counts them (windows)."""
        return self.manifest["details"]["windows"]


@functools.cache
def _say_damaged(path: Path, files: str) -> None:
    """Once, however often the artifact is looked for."""
    logger.warning("%s is damaged (%s): it is made anew", path, files)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def key_of(*description: Any) -> str:
    """Twelve hex digits that depend on `description` (JSON values) alone."""
    text = json.dumps(description, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A hidden folder to fill; it becomes `path` when the block ends, and vanishes when it fails."""
    partial = path.with_name(f".partial-{path.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(path, ignore_errors=True)
    os.replace(partial, path)


def write_manifest(directory: Path, manifest: dict[str, Any]) -> None:
    """The last file of an artifact, itself written by rename."""
    files = {path.name: path.stat().st_size for path in sorted(directory.iterdir()) if path.is_file()}
    partial = directory / ".manifest.json"
    partial.write_text(json.dumps({**manifest, "files": files}, indent=2, ensure_ascii=False))
    os.replace(partial, directory / "manifest.json")
