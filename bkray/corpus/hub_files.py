"""Hub data sets of JSON Lines, CSV or text: `datasets` finds, downloads and unpacks, rows are parsed here.

files of a split ─► lines, or rows of CSV ─► the text of each, or why it is none

`datasets` gives a whole data set up for one row that it cannot parse, and where the type of a JSON column
changes it writes texts as JSON.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO

import fsspec

from bkray.config import UserError
from bkray.corpus.columns import no_such_column
from bkray.corpus.lines import UTF8_MAX_BYTES, json_texts, pieces_of, readable, whole_lines
from bkray.corpus.shard import HEAD_CHARS, Fault

if TYPE_CHECKING:
    from datasets import DatasetBuilder

Content = str | bytes | bytearray | Fault
Files = Iterator[tuple[str, str]]
"""Name of each in the data set, and the path or URL of what is unpacked."""

_CELL_CHARS = 1 << 28


def parsed_here(builder: DatasetBuilder, text_field: str) -> bool:
    """Whether a data set is of files that are read here: JSON Lines, CSV as most write it, lines of text."""
    config: Any = builder.config
    if not config.data_files or getattr(config, "encoding", None) not in (None, "utf-8"):
        return False
    match builder.name:
        case "json":
            return config.field is None
        case "text":
            return config.sample_by == "line" and text_field == "text"
        case "csv":
            options, usual = (each.pd_read_csv_kwargs for each in (config, type(config)()))
            return len(options.pop("sep")) == 1 and options.items() <= usual.items()
    return False


def read_files(
    builder: DatasetBuilder, split: str, source: str, text_field: str, max_chars: int, streamed: bool
) -> Iterator[Content] | None:
    """Every row of a split of such a data set; None where its JSON is no JSON Lines but an array."""
    files = _files(builder, split, streamed)
    if builder.name == "csv":
        return _csv_texts(files, source, text_field, builder.config.sep)  # type: ignore[attr-defined]
    pieces = _pieces(files)
    if builder.name == "text":
        return whole_lines(pieces, max_chars * UTF8_MAX_BYTES)
    first = next(pieces, b"")
    if first.lstrip().startswith(b"["):
        return None
    rows = json_texts(chain([first] if first else [], pieces), source, text_field, max_chars)
    return (text for _, text in rows)


def _files(builder: DatasetBuilder, split: str, streamed: bool) -> Files:
    """Each downloaded when it is its turn, or not at all."""
    from datasets import DownloadConfig, DownloadManager, StreamingDownloadManager

    kind: Callable[..., Any] = StreamingDownloadManager if streamed else DownloadManager
    how = DownloadConfig(extract_on_the_fly=True)
    manager = kind(builder.dataset_name, base_path=builder.base_path, download_config=how)
    for url in builder.config.data_files[split]:  # type: ignore[index]
        name = str(url).rsplit("/", 1)[-1]
        yield from ((name, file) for file in manager.iter_files(manager.download_and_extract(url)))


@contextmanager
def _opened(name: str, file: str) -> Iterator[BinaryIO]:
    try:
        with fsspec.open(file, "rb") as opened:
            yield readable(opened)
    except UserError:
        raise
    except Exception as error:  # a file system's own, or that of a compressed file which ends early
        raise UserError(f"{name}: cannot be read: {type(error).__name__}: {error}") from error


def _pieces(files: Files) -> Iterator[bytes]:
    for name, file in files:
        piece = b"\n"
        with _opened(name, file) as opened:
            for piece in pieces_of(opened):
                yield piece
        if not piece.endswith(b"\n"):
            yield b"\n"


def _csv_texts(files: Files, source: str, column: str, delimiter: str) -> Iterator[str | Fault]:
    """The cells of a column. A quote that is never closed makes one malformed row of the rest of its file."""
    csv.field_size_limit(_CELL_CHARS)
    for name, file in files:
        with _opened(name, file) as opened:
            lines = io.TextIOWrapper(opened, "utf-8-sig", errors="surrogateescape", newline="")
            rows = csv.reader(lines, delimiter=delimiter, strict=True)
            header = next(rows, None)
            if header is None:
                continue
            if column not in header:
                raise no_such_column(source, column, header, header)
            yield from _cells(rows, header.index(column), len(header), name)


def _cells(rows: Any, column: int, width: int, file: str) -> Iterator[str | Fault]:
    while True:
        begins = rows.line_num + 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            place = f"{file}, lines {begins} to {rows.line_num}"
            if "field limit" in str(error):  # what comes next would begin within a cell
                raise UserError(
                    f"{place}: a quote that opens there is not closed for {_CELL_CHARS:,} "
                    "characters: close it, or write the data as JSON Lines"
                ) from error
            yield Fault("malformed CSV", f"{place}: {error}")
            continue
        if len(cells) > width:
            head = ", ".join(cells)[:HEAD_CHARS]
            yield Fault("malformed CSV", f"{file}, line {begins}: {len(cells)} cells, not {width}: {head}")
        elif cells:
            yield cells[column] if column < len(cells) else Fault("text is not a string", "null")
