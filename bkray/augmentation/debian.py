"""WordNet from Debian's package wordnet-base, in the form that nltk reads; neither step needs root.

    apt-get download ─► wordnet-base_….deb ─► dpkg-deb -x ─► FOLDER: data.*, index.*, *.exc, lexnames

The package lacks `lexnames`, the names of the files that WordNet was written in; its manual lists them. nltk
opens `index.sense` too: an empty one serves all but looking up senses by their keys, which nothing here does.
"""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from bkray.config import UserError

PACKAGE = "wordnet-base"
_DOWNLOAD_S = 600
_FILES, _MANUAL = "usr/share/wordnet", "usr/share/man/man5/lexnames.5WN.gz"
_LICENSE = f"usr/share/doc/{PACKAGE}/copyright"
_CATEGORIES = {"noun": 1, "verb": 2, "adj": 3, "adv": 4}
_LEXNAME = re.compile(r"^(\d\d)\t((noun|verb|adj|adv)\.\w+)", re.MULTILINE)


def unpack(package: Path, folder: Path) -> None:
    """Fill `folder`, which is not there yet, from a file wordnet-base_….deb.

    Raises UserError where dpkg-deb is missing or the file is not that package.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".wordnet-") as scratch:
        root = Path(scratch)
        _run(["dpkg-deb", "-x", str(package.absolute()), scratch], root)
        files = root / _FILES
        try:
            (files / "lexnames").write_text(
                _lexnames(gzip.decompress((root / _MANUAL).read_bytes()).decode())
            )
            (files / "index.sense").touch()
            shutil.copy(root / _LICENSE, files / "LICENSE")
        except FileNotFoundError as error:
            raise UserError(
                f"fetch --deb {package}: it lacks {Path(error.filename).relative_to(root)}: "
                f"name a file of Debian's package {PACKAGE}"
            ) from error
        files.rename(folder)


def download_and_unpack(folder: Path) -> None:
    """`unpack` what apt-get downloads; raises UserError where it cannot."""
    with tempfile.TemporaryDirectory() as scratch:
        _run(["apt-get", "download", PACKAGE], Path(scratch))
        unpack(next(Path(scratch).glob("*.deb")), folder)


def _lexnames(manual: str) -> str:
    """Number, name and category a line, from the table of the manual page."""
    rows = [(number, name, _CATEGORIES[part]) for number, name, part in _LEXNAME.findall(manual)]
    return "".join(f"{number}\t{name}\t{category}\n" for number, name, category in rows)


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_DOWNLOAD_S, check=False
        )
    except FileNotFoundError:
        raise UserError(f"fetch: `{' '.join(command)}` needs {command[0]}, which is not installed") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"fetch: `{' '.join(command)}` has not ended in {_DOWNLOAD_S} s") from None
    if done.returncode:
        said = (done.stderr.strip() or "without a word").splitlines()[-1]
        raise UserError(f"fetch: `{' '.join(command)}` failed ({said})")
