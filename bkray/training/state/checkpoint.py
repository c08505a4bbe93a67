"""Checkpoints: a folder a step, complete or not there, read without unpickling foreign code.

checkpoints/step-00000100/state.pt        tensors and plain values (weights_only)
checkpoints/step-00000100/manifest.json   step, digest of state.pt, key of the run, validation loss
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import os
import pickle
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bkray.config import UserError
from bkray.training.parallel.world import World

logger = logging.getLogger(__name__)

DAMAGE = (OSError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError)
"""What reading a damaged checkpoint may end in."""


class Checkpointer:
    """Keeps the last `keep` checkpoints of the run identified by `key` under `directory`, and the best one.

    The best is the one with the lowest validation loss of those that were saved with one. Saving writes a
    hidden folder first and renames it, so that a kill leaves either no checkpoint or a whole one. Loading
    takes the newest that is whole; a damaged one is named in a warning and the one before it is used.
    """

    def __init__(self, directory: Path, key: str, keep: int = 2) -> None:
        self.directory, self.key, self.keep = Path(directory), key, keep
        self._writing: Future[Path] | None = None

    def save_behind(self, step: int, state: dict[str, Any], validation_loss: float | None = None) -> None:
        """Copy `state` to the host's memory now and write it in a thread; one write at a time.

        Waits for the write before, and raises what that failed with.
        """
        self.wait()
        copied = _copied(state, {})
        executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing = executor.submit(self.save, step, copied, validation_loss)
        executor.shutdown(wait=False)

    def wait(self) -> None:
        """Return when what `save_behind` was given is on disk; raises what its writing failed with."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def save(self, step: int, state: dict[str, Any], validation_loss: float | None = None) -> Path:
        """Write a checkpoint and remove those that are no longer kept; raises UserError where it cannot."""
        final = self.directory / f"step-{step:08d}"
        partial = self._hidden(final)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            self._write(partial, step, state, validation_loss)
            if final.exists():
                self._hide(final)
            os.replace(partial, final)
            _to_disk(self.directory)
        except (OSError, RuntimeError) as error:  # torch wraps what the file says into a RuntimeError
            shutil.rmtree(partial, ignore_errors=True)
            raise UserError(
                f"{final}: the checkpoint could not be written ({_reason(error)}); the last good one is "
                "kept: free some space and run the same command again"
            ) from error
        own = self._own()
        kept = {_lowest(own), *list(own)[-self.keep :]}
        for old in own:
            if old not in kept:
                self._hide(old)
        self._sweep()
        return final

    def load(self) -> dict[str, Any] | None:
        """The state of this run's newest whole checkpoint, or None where there is none.

        Raises UserError where there are checkpoints of another run alone.
        """
        self.wait()
        self.check()
        foreign: UserError | None = None
        for path in reversed(self._all()):
            try:
                return self.read(path)
            except UserError as error:
                foreign = foreign or error
                logger.warning("%s. Trying the one before it", error)
            except DAMAGE as error:
                logger.warning("checkpoint %s is damaged (%s): trying the one before it", path, error)
        if foreign:
            raise foreign
        return None

    def read(self, path: Path) -> dict[str, Any]:
        """The state of the checkpoint `path`.

        Raises UserError where it is another run's, one of DAMAGE where it is damaged.
        """
        manifest = self._own_manifest(path)
        if manifest["sha256"] != _digest(path / "state.pt"):
            raise ValueError("its contents do not match its manifest")
        return torch.load(path / "state.pt", map_location="cpu", weights_only=True)

    def drop_after(self, step: int) -> None:
        """Remove the checkpoints beyond `step`: what they continue is to be made anew."""
        for path in self._own():
            if _step(path) > step:
                self._hide(path)
        self._sweep()

    def best(self) -> Path | None:
        """The checkpoint with the lowest validation loss, by the manifests; None where none has one."""
        return _lowest(self._own())

    def check(self) -> None:
        """Raise UserError where there are checkpoints of another run alone; reads no state."""
        foreign: UserError | None = None
        for path in reversed(self._all()):
            try:
                self._own_manifest(path)
                return
            except UserError as error:
                foreign = foreign or error
            except (OSError, ValueError, KeyError):
                continue  # damaged: `load` names it
        if foreign:
            raise foreign

    def _write(self, folder: Path, step: int, state: dict[str, Any], validation_loss: float | None) -> None:
        with open(folder / "state.pt", "wb") as file:
            torch.save(state, file)
        known = validation_loss is not None and math.isfinite(validation_loss)
        manifest = {
            "step": step,
            "key": self.key,
            "sha256": _digest(folder / "state.pt"),
            "validation_loss": validation_loss if known else None,
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
        for path in (folder / "state.pt", folder / "manifest.json", folder):
            _to_disk(path)

    def _own_manifest(self, path: Path) -> dict[str, Any]:
        manifest = json.loads((path / "manifest.json").read_text())
        if manifest["key"] != self.key:
            raise UserError(
                f"{path} belongs to another run (other data, model or training settings, for example because "
                "the corpus or an installed version has changed): choose another --out or name, or remove "
                f"{self.directory} to train anew here"
            )
        return manifest

    def _hide(self, path: Path) -> None:
        """Let the checkpoint be gone at once, for `_sweep`: half of one would be called damaged."""
        hidden = self._hidden(path, "old-")
        shutil.rmtree(hidden, ignore_errors=True)
        os.replace(path, hidden)

    def _sweep(self) -> None:
        """Remove what was half written, or half removed, when a run was killed; what will not go stays."""
        for path in self.directory.glob(".partial-*step-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _hidden(self, path: Path, old: str = "") -> Path:
        return self.directory / f".partial-{old}{path.name}"

    def _own(self) -> dict[Path, float | None]:
        """The validation losses of all but another run's; a damaged one counts as this run's, without one."""
        losses: dict[Path, float | None] = {}
        for path in self._all():
            try:
                losses[path] = self._own_manifest(path).get("validation_loss")
            except UserError:
                continue
            except (OSError, ValueError, KeyError):
                losses[path] = None
        return losses

    def _all(self) -> list[Path]:
        """Every step's, oldest first; a copy that was put aside under another name is none of them."""
        named = (path for path in self.directory.glob("step-*") if path.name[5:].isdecimal())
        return sorted(named, key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def load_on_all_ranks(checkpointer: Checkpointer, world: World) -> dict[str, Any] | None:
    """What `checkpointer.load` gives every rank, once all have come here; a collective call.

    Raises UserError where ranks find different checkpoints: each would train on from its own.
    """
    checkpointer.wait()
    world.total(torch.zeros(1))  # a rank that waits for a writer holds back the others
    state = checkpointer.load()
    found = torch.cat(world.gather(torch.tensor([state["step"] if state else -1]))).tolist()
    if len(set(found)) > 1:
        shown = ", ".join("none" if step < 0 else f"step {step}" for step in found)
        raise UserError(
            f"the workers find different checkpoints in {checkpointer.directory} ({shown}): give --out a "
            "folder that every node reaches, and run the same command again"
        )
    return state


def _lowest(losses: dict[Path, float | None]) -> Path | None:
    known = {path: loss for path, loss in losses.items() if loss is not None}
    return min(known, key=lambda path: known[path]) if known else None


def _copied(value: Any, tensors: dict[tuple[Any, ...], Tensor]) -> Any:
    """`value` with every tensor on the host and nothing shared with the original; tied tensors stay tied."""
    if isinstance(value, Tensor):
        place = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if not value.numel() or place not in tensors:
            tensors[place] = value.detach().to("cpu", copy=True)
        return tensors[place]
    if isinstance(value, dict):
        copied = copy.copy(value)  # an OrderedDict of a module keeps the versions noted on it
        copied.update((key, _copied(inner, tensors)) for key, inner in value.items())
        return copied
    if isinstance(value, list | tuple):
        return type(value)([_copied(inner, tensors) for inner in value])
    return copy.deepcopy(value)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    """What was written to a file, or the names in a folder, survive the loss of the machine from here on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException | None) -> BaseException | None:
    """What the system said, where torch hides it in the context of its own error."""
    current = error
    while current is not None and not isinstance(current, OSError):
        current = current.__context__
    return current or error
