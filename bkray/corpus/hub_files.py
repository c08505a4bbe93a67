"""The files of a hub data set in which `datasets` cannot parse a row: it gives the whole data set up for one.

JSON Lines, CSV or text of a split ─► rows in the order of `datasets` ─► the text of each, or why it has none
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import fsspec

from bkray.config import UserError
from bkray.config.corpus import HubCorpus, JsonlCorpus, TextCorpus
from bkray.corpus.columns import no_such_column
from bkray.corpus.lines import read_jsonl, read_pieces, read_text
from bkray.corpus.shard import HEAD_CHARS, Fault, Shard

if TYPE_CHECKING:
    from datasets import DatasetBuilder

Content = str | bytes | bytearray | Fault


def read_files(
    builder: DatasetBuilder, split: str, shard: Shard, corpus: HubCorpus, max_chars: int
) -> Iterator[Content] | None:
    """Every row of the split's files; None of those that are no JSON Lines, CSV or lines of text."""
    urls = tuple(str(url) for url in (builder.config.data_files or {}).get(split, ()))
    shards, column = [replace(shard, location=url) for url in urls], corpus.text_field
    match builder.name:
        case "json" if builder.config.field is None and not any(map(_is_array, urls)):  # type: ignore[attr-defined]
            lines = JsonlCorpus(kind="jsonl", path=urls, text_field=column)
            return (row.content for file in shards for row in read_jsonl(file, lines, max_chars))
        case "text" if builder.config.sample_by == "line" and column == "text":  # type: ignore[attr-defined]
            text = TextCorpus(kind="text", path=urls, document="line")
            return (row.content for file in shards for row in read_text(file, text, max_chars))
        case "csv":
            options, usual = (
                each.pd_read_csv_kwargs  # type: ignore[attr-defined]
                for each in (builder.config, type(builder.config)())
            )
            delimiter = options.pop("sep")
            if options.items() <= usual.items():
                return (row for file in shards for row in _read_csv(file, column, delimiter, max_chars))
    return None


def _is_array(url: str) -> bool:
    """Whether a JSON file is one array: its lines are no objects, though some may look so."""
    return next(read_pieces(url), b"").lstrip().startswith(b"[")


def _read_csv(shard: Shard, column: str, delimiter: str, max_chars: int) -> Iterator[str | Fault]:
    """The cells of a column. A quote that is never closed makes one malformed row of all that it takes in."""
    csv.field_size_limit(max_chars + 1)
    try:
        with fsspec.open(
            shard.location,
            "rt",
            encoding="utf-8-sig",
            errors="surrogateescape",
            newline="",
            compression="infer",
        ) as file:
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            header = next(rows, [])
            if column not in header:
                raise no_such_column(shard.source, column, header, header)
            yield from _cells(rows, header.index(column), len(header))
    except (OSError, csv.Error) as error:
        raise UserError(f"{shard.location}: cannot be read: {error}") from error


def _cells(rows: Any, column: int, width: int) -> Iterator[str | Fault]:
    while True:
        begins = rows.line_num + 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Fault("malformed CSV", f"lines {begins} to {rows.line_num}: {error}")
            continue
        if len(cells) > width:
            head = ", ".join(cells)[:HEAD_CHARS]
            yield Fault("malformed CSV", f"line {begins}: {len(cells)} cells, not {width}: {head}")
        elif cells:
            yield cells[column] if column < len(cells) else Fault("text is not a string", "null")
