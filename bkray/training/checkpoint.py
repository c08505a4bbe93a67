"""Checkpoints: a folder a step, complete or not there, read without unpickling foreign code.

checkpoints/step-00000100/state.pt        tensors and plain values (weights_only)
checkpoints/step-00000100/manifest.json   step, digest of state.pt, key of the run
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

from bkray.config import UserError

logger = logging.getLogger(__name__)


class Checkpointer:
    """Keeps the last `keep` checkpoints of the run identified by `key` under `directory`.

    Saving writes a hidden folder first and renames it, so that a kill leaves either no checkpoint or a whole
    one. Loading takes the newest that is whole; a damaged one is named in a warning and the one before it is
    used.
    """

    def __init__(self, directory: Path, key: str, keep: int = 2) -> None:
        self.directory, self.key, self.keep = Path(directory), key, keep

    def save(self, step: int, state: dict[str, Any]) -> Path:
        self.directory.mkdir(parents=True, exist_ok=True)
        final = self.directory / f"step-{step:08d}"
        partial = self.directory / f".partial-{final.name}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            torch.save(state, partial / "state.pt")
            manifest = {"step": step, "key": self.key, "sha256": _digest(partial / "state.pt")}
            (partial / "manifest.json").write_text(json.dumps(manifest))
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise UserError(
                f"{final}: the checkpoint could not be written ({error}); the last good one is kept: "
                "free some space and run the same command again"
            ) from error
        for old in self._all()[: -self.keep]:
            shutil.rmtree(old)
        return final

    def load(self) -> dict[str, Any] | None:
        """The state of the newest whole checkpoint, or None where there is none.

        Raises UserError where the checkpoints belong to another run.
        """
        for path in reversed(self._all()):
            try:
                manifest = self._own_manifest(path)
                if manifest["sha256"] != _digest(path / "state.pt"):
                    raise ValueError("its contents do not match its manifest")
                return torch.load(path / "state.pt", map_location="cpu", weights_only=True)
            except UserError:
                raise
            except (OSError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
                logger.warning("checkpoint %s is damaged (%s): trying the one before it", path, error)
        return None

    def check(self) -> None:
        """Raise UserError where the newest checkpoint belongs to another run; reads no state."""
        for path in self._all()[-1:]:
            try:
                self._own_manifest(path)
            except UserError:
                raise
            except (OSError, ValueError, KeyError):
                return  # damaged: `load` names it and takes the one before

    def _own_manifest(self, path: Path) -> dict[str, Any]:
        manifest = json.loads((path / "manifest.json").read_text())
        if manifest["key"] != self.key:
            raise UserError(
                f"{path} belongs to another run (other data, model or training settings, for example because "
                "the corpus or an installed version has changed): choose another --out or name, or remove "
                f"{self.directory} to train anew here"
            )
        return manifest

    def _all(self) -> list[Path]:
        return sorted(self.directory.glob("step-*"))


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
