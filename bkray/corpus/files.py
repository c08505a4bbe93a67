"""From the paths in a recipe to one shard a file.

file, folder, glob or fsspec URL ─► files of that kind, sorted ─► Shard each (size, fingerprint, own split)
"""

from __future__ import annotations

import difflib
import functools
import glob
import logging
import os
import posixpath
import re
from collections.abc import Iterator
from typing import Any

import fsspec
from fsspec.core import has_magic, url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from bkray.config import UserError
from bkray.config.corpus import JsonlCorpus, ParquetCorpus, TextCorpus
from bkray.corpus.lines import COMPRESSION, name_in
from bkray.corpus.shard import Shard, own_splits, shown

logger = logging.getLogger(__name__)
_SUFFIXES = {"text": (".txt", ".md"), "jsonl": (".jsonl", ".json", ".ndjson"), "parquet": (".parquet",)}
_COMPRESSIBLE = ("text", "jsonl")


def list_files(corpus: TextCorpus | JsonlCorpus | ParquetCorpus) -> list[Shard]:
    """One shard a file, sorted by source; raises UserError where a path leads to nothing readable."""
    found: dict[str, tuple[str, str, int]] = {}  # source: URL, fingerprint, bytes
    urls = set()
    for position, path in enumerate(corpus.paths):
        for fs, file, source in _reached(path, _suffixes(corpus.kind)):
            if shown(source) != source:
                raise UserError(f"corpus.path: the name of the file {shown(source)} is not UTF-8: rename it")
            url = fs.unstrip_protocol(file)
            if url in urls:
                continue
            urls.add(url)
            # Two of the given paths may hold files of one name: the position of the later's tells them apart.
            unique = f"{position}/{source}" if source in found else source
            found[unique] = (url, *_state(fs, file))
    if not any(size for _, _, size in found.values()):
        raise UserError(f"corpus.path {corpus.path!r}: the corpus is empty ({len(found)} files of 0 bytes)")
    for url, _, size in found.values():
        if not size and url.startswith("file:") and url.lower().endswith(tuple(COMPRESSION)):
            raise UserError(f"{url}: the compressed file has 0 bytes; copy or download it again")
    sources = sorted(found)
    return [
        Shard(corpus.kind, found[source][0], source, split, carve, *found[source][1:])
        for source, (split, carve) in zip(sources, own_splits(sources), strict=True)
    ]


def _suffixes(kind: str) -> tuple[str, ...]:
    plain = _SUFFIXES[kind]
    packed = COMPRESSION if kind in _COMPRESSIBLE else ()
    return plain + tuple(suffix + compression for suffix in plain for compression in packed)


def _reached(path: str, suffixes: tuple[str, ...]) -> list[tuple[fsspec.AbstractFileSystem, str, str]]:
    """`_find`, whatever a file system raises turned into a UserError."""
    try:
        return list(_find(path, suffixes))
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"corpus.path {path!r}: cannot be reached: {reason}") from error


def _find(path: str, suffixes: tuple[str, ...]) -> Iterator[tuple[fsspec.AbstractFileSystem, str, str]]:
    """File system, path and source name of each file that `path` stands for."""
    try:
        fs, root = url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise UserError(f"corpus.path {path!r}: {error}") from error
    if fs.isfile(root):
        yield fs, root, posixpath.basename(name_in(root))
        return
    local = isinstance(fs, LocalFileSystem)
    if fs.isdir(root):
        base, candidates = root, _files_below(root) if local else fs.find(root)
    elif has_magic(root):
        found = _matching(root) if local else fs.glob(root)
        base, candidates = _folder_before_magic(root), [file for file in found if not fs.isdir(file)]
    else:
        raise UserError(f"corpus.path {path!r}: no such file or folder{_nearby(fs, root)}")
    named = [(file, posixpath.relpath(file, base)) for file in candidates]
    named = [(file, name) for file, name in named if not _hidden(name)]
    kept = [(file, name) for file, name in named if name.lower().endswith(suffixes)]
    if not kept:
        raise UserError(f"corpus.path {path!r}: no file with a name in {', '.join(suffixes)} there")
    if packed := sorted(name for _, name in named if _packed_otherwise(name.lower(), suffixes)):
        _warn(
            f"corpus.path {path!r}: {len(packed)} files, such as {shown(packed[0])}, are left out, as their "
            f"names do not end in {', '.join(suffixes)}: unpack them, or move them elsewhere"
        )
    for file, name in kept:
        yield fs, file, name


def _files_below(root: str) -> list[str]:
    """The files below a local folder and the folders that links lead to, each folder once.

    A folder has its own name rather than a link's. Raises the OSError of one that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise error

    found: list[str] = []
    seen: set[str] = set()
    tops = [root]
    for top in tops:
        for folder, folders, files in os.walk(top, onerror=refuse):
            real = os.path.realpath(folder)
            folders[:] = [] if real in seen else sorted(name for name in folders if not _hidden(name))
            found += [] if real in seen else [os.path.join(folder, name) for name in files]
            seen.add(real)
            tops += filter(os.path.islink, (os.path.join(folder, name) for name in folders))
    return found


def _matching(pattern: str) -> list[str]:
    """What a local glob finds, by links to folders too, which fsspec's own does not follow.

    `**` would go round in a loop of links for ever: from there on it is `_files_below`.
    """
    matches = re.compile(glob_translate(pattern)).match
    head, deep, _ = f"{pattern}/".partition("/**/")
    if not deep:
        return glob.glob(pattern)
    return [file for folder in glob.glob(head) for file in _files_below(folder) if matches(file)]


@functools.cache
def _warn(message: str) -> None:
    """Once a process: a run lists its corpus several times."""
    logger.warning(message)


def _packed_otherwise(name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a file is left out for its last suffix alone, as `a.txt.bz2` is."""
    return not name.endswith(suffixes) and posixpath.splitext(name)[0].endswith(suffixes)


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _folder_before_magic(pattern: str) -> str:
    while has_magic(pattern):
        pattern = posixpath.dirname(pattern)
    return pattern


def _nearby(fs: fsspec.AbstractFileSystem, path: str) -> str:
    folder, name = posixpath.split(path)
    if not fs.isdir(folder):
        return f"; nor is there a folder {folder}"
    names = [posixpath.basename(entry.rstrip("/")) for entry in fs.ls(folder, detail=False)]
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {posixpath.join(folder, close[0])}?" if close else ""


def _state(fs: fsspec.AbstractFileSystem, file: str) -> tuple[str, int]:
    """Fingerprint and size of a file; UserError where it cannot be read."""
    try:
        if isinstance(fs, LocalFileSystem):
            with open(file, "rb") as opened:
                status = os.stat(opened.fileno())
            return f"{status.st_size}-{status.st_mtime_ns}", status.st_size
        info: dict[str, Any] = fs.info(file)
    except OSError as error:
        raise UserError(f"corpus.path: {file} cannot be read: {error.strerror or error}") from error
    keys = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created")
    version = next((info[key] for key in keys if info.get(key)), "")
    return f"{info.get('size')}-{version}", info.get("size") or 0
