"""The folder that a command leaves its results in: whose it is, and that one process at a time works in it.

check_kind ─► make_folder ─► locked ─► claimed (a file that names the recipe or the specification) ─► work
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bkray.config import UserError
from bkray.reporting.files import write_atomically
from bkray.runtime.exits import find_user_error

RUN, SWEEP, COMPARISON, LOOP = "resolved.yaml", "sweep.json", "comparison.json", "active.json"
_KINDS = {RUN: "run", SWEEP: "sweep", COMPARISON: "comparison", LOOP: "loop"}
"""What a folder holds, by the file in it that says of which recipe or specification it is."""
COMPRESSED = "compressed"
"""Where a run has the smaller copies of its model."""


def check_out(out: Path) -> None:
    """Raise UserError where nothing can be written under `out`; makes nothing."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        kind = "not writable" if there.is_dir() else "not a folder"
        raise UserError(f"--out {out}: {there} is {kind}: choose another --out")


def check_kind(identity: Path) -> None:
    """Raise UserError where the folder of the file `identity` holds something of another kind."""
    folder, wanted = identity.parent, _KINDS[identity.name]
    for name, kind in _KINDS.items():
        if name != identity.name and (folder / name).exists():
            raise UserError(f"{folder} holds a {kind}, not a {wanted}: choose another --out, or name=…")
    ours = identity.exists() or (folder / ".lock").exists()
    if not ours and folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no {wanted} of bkray: choose another --out or name")


def check_identity(identity: Path, text: str) -> None:
    """Raise UserError where the folder of the file `identity` holds something else than what `text` names."""
    check_kind(identity)
    if identity.exists() and identity.read_text() != text:
        raise UserError(
            f"{identity.parent} holds another {_KINDS[identity.name]} of this name: choose another --out, or "
            "name=… for this one"
        )


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}): choose another --out") from None


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep a second process out of the same folder; clear away what a killed one left half-written."""
    with open(run / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{run}: another bkray process is at work here: wait for it, or choose another --out"
            ) from None
        for partial in run.glob("**/.partial-*"):
            shutil.rmtree(partial, ignore_errors=True)
        yield


@contextmanager
def claimed(identity: Path, text: str, begun: Path) -> Iterator[None]:
    """Make the folder that of what `text` names; not for good where the user has something to mend in the
    block and what is trained, which makes `begun`, has not begun."""
    write_atomically(identity, text)
    try:
        yield
    except Exception as error:
        if find_user_error(error) and not begun.exists():
            identity.unlink()
        raise
