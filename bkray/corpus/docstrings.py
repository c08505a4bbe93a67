"""The English docstrings of installed packages, read as text and never imported.

package name ─► its *.py files, 50 a shard ─► ast of each ─► docstrings of modules, classes, functions
"""

from __future__ import annotations

import ast
import gc
import importlib.metadata
import importlib.util
import inspect
import os
import platform
import string
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from bkray.config import UserError
from bkray.config.corpus import DocstringsCorpus
from bkray.corpus.shard import HELD_OUT, Fault, Record, Shard, shown

FILES_A_SHARD = 50
MIN_CHARS = 80
MOST_BYTES = 2 << 20
"""Of a file: a list of numbers takes 470 times its bytes as a syntax tree, 1 GB here."""
MIN_LETTERS = 0.5
"""Least share of ASCII letters among visible bytes: below it are tables, doctests and other scripts."""

_LETTERS = string.ascii_letters.encode()
_SPACE = string.whitespace.encode()
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
_STATEMENTS = (ast.stmt, ast.ExceptHandler, ast.match_case, ast.Module)
_BLOCKS_OF: dict[type[ast.AST], tuple[str, ...]] = {
    node: tuple(field for field in node._fields if field in _BLOCKS)
    for node in vars(ast).values()
    if isinstance(node, type) and issubclass(node, _STATEMENTS)
}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def list_packages(corpus: DocstringsCorpus) -> list[Shard]:
    """About 50 Python files a shard, by package and path; UserError where a package is not installed."""
    distributions = importlib.metadata.packages_distributions()
    shards = []
    for package in sorted(set(corpus.packages)):
        sizes = _python_files(package)
        version = _version(package, distributions.get(package, []))
        names = sorted(sizes)
        for start in range(0, len(names), FILES_A_SHARD):
            group = tuple(names[start : start + FILES_A_SHARD])
            size = sum(sizes[name] for name in group)
            source = f"{package}/{start // FILES_A_SHARD:05d}"
            fingerprint = f"{version}+{size}"
            shards.append(Shard("docstrings", package, source, None, HELD_OUT, fingerprint, size, group))
    if not shards:
        raise UserError("corpus.packages: the corpus is empty: name at least one package")
    return shards


def _roots(package: str) -> list[Path]:
    """The folders that hold `package` (several for a namespace package)."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None:
        raise UserError(
            f"corpus.packages: no package {package!r} is installed in this environment "
            "(top-level import names are expected): install it or leave it out"
        )
    if spec.submodule_search_locations is not None:
        return [Path(location).parent for location in spec.submodule_search_locations]
    return [Path(spec.origin).parent] if spec.has_location and spec.origin else []


def _python_files(package: str) -> dict[str, int]:
    """Size of each *.py file of the package, by its path relative to the package's parent folder."""
    sizes = {}
    for root in _roots(package):
        single = root / f"{package}.py"
        if single.is_file():
            sizes[single.name] = single.stat().st_size
        if not (root / package).is_dir():
            continue
        for folder, _, names in os.walk(root / package, onerror=_unreadable):
            for name in names:
                path = Path(folder, name)
                if name.endswith(".py") and path.is_file():  # an editor's lock is a link to nothing
                    file = path.relative_to(root).as_posix()
                    if shown(file) != file:
                        raise UserError(
                            f"corpus.packages: the name of the file {shown(file)} is not UTF-8: rename it or "
                            f"leave {package!r} out"
                        )
                    sizes.setdefault(file, path.stat().st_size)
    if not sizes:
        raise UserError(f"corpus.packages: {package!r} has no Python files here: leave it out")
    return sizes


def _unreadable(error: OSError) -> None:
    raise UserError(f"corpus.packages: {error.filename} cannot be read: {error.strerror}") from error


def _version(package: str, distributions: list[str]) -> str:
    if package in sys.stdlib_module_names:
        return platform.python_version()
    return ",".join(f"{name}=={importlib.metadata.version(name)}" for name in sorted(set(distributions)))


def read_docstrings(shard: Shard) -> Iterator[Record]:
    """The docstrings of a shard's files; `source` is the file, `ordinal` counts all its docstrings."""
    roots = _roots(shard.location)
    for name in shard.files:
        path = next((root / name for root in roots if (root / name).is_file()), None)
        if path is None:
            raise UserError(
                f"corpus.packages: {shard.location} has no file {name} here: "
                f"every machine needs the same version ({shard.fingerprint.partition('+')[0]})"
            )
        try:
            code = path.read_bytes()
        except OSError as error:
            raise UserError(f"corpus.packages: {path} cannot be read: {error.strerror}") from error
        found = docstrings(code)
        if isinstance(found, Fault):
            yield Record(name, 0, found)
            continue
        for ordinal, text in enumerate(found):
            if len(text) >= MIN_CHARS and _mostly_english(text):
                yield Record(name, ordinal, text)


def docstrings(code: bytes) -> list[str] | Fault:
    """The dedented docstrings of Python source in the order they stand, or why it does not parse.

    Source without a triple quote is taken to have none. That of more than MOST_BYTES is not parsed.
    """
    if b'"""' not in code and b"'''" not in code:
        return []
    if len(code) > MOST_BYTES:
        head = code[:80].decode("utf-8", errors="replace")
        return Fault("too long", f"{len(code)} bytes of Python, more than {MOST_BYTES}: {head}")
    # A syntax tree is many objects and no cycle: without the collector, parsing is a third faster.
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(code)
        return [inspect.cleandoc(text) for text in _raw_docstrings(tree)]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return Fault("not Python", f"{type(error).__name__}: {error}"[:200])
    finally:
        if collecting:
            gc.enable()


def _raw_docstrings(tree: ast.Module) -> Iterator[str]:
    """Docstrings in order, by statements alone: expressions hold none."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, _DOCUMENTED):
            match node.body[:1]:
                case [ast.Expr(ast.Constant(str(text)))]:
                    yield text
        for block in reversed(_BLOCKS_OF[type(node)]):
            pending.extend(reversed(getattr(node, block)))


def _mostly_english(text: str) -> bool:
    visible = text.encode("utf-8", errors="replace").translate(None, _SPACE)
    return len(visible) - len(visible.translate(None, _LETTERS)) >= MIN_LETTERS * len(visible)
