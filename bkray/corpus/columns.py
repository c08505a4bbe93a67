"""Texts in the columns of Arrow and Parquet tables, a few rows at a time.

Parquet file ─► one row after the other ─► bytes of each cell (decoded and checked by the caller)

A few kilobytes of Parquet may be gigabytes of text: a value that is repeated is written once. So a row is
decoded at a time, which costs some microseconds a row. A page is the least that can be read and is
held twice, compressed and not. pyarrow and pandas write 1,024 rows into one however long they are.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from bkray.config import UserError
from bkray.config.corpus import ParquetCorpus
from bkray.corpus.shard import HEAD_CHARS, Fault, Record, Shard, shown

_BUFFER_BYTES = 1 << 20  # without one, a row group's whole column is read before its first row
_NAMES_SHOWN = 20


def read_parquet(shard: Shard, corpus: ParquetCorpus) -> Iterator[Record]:
    """The texts of a Parquet file; UserError where the column is missing or holds no text."""
    try:
        with fsspec.open(shard.location, "rb") as file:
            table = pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
            check_column(shard.source, corpus.text_field, table.schema_arrow)
            rows = table.iter_batches(1, columns=[corpus.text_field], use_threads=False)
            for ordinal, row in enumerate(rows):
                for content in cells(row.column(0)):
                    yield Record(shard.source, ordinal, content)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{shard.location}: cannot be read as Parquet: {error}") from error
    except UserError:
        raise
    except Exception as error:  # a file system's own, such as that of a server which sends no part of a file
        mend = "; download it first" if shard.location.startswith("http") else ""
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{shard.location}: cannot be read: {reason}{mend}") from error


def cells(column: pa.Array) -> Iterator[bytes | Fault]:
    """Each cell's bytes, not yet decoded, so that one that is not UTF-8 does not take the others with it."""
    for cell in column:
        buffer = (cell.value if isinstance(cell, pa.DictionaryScalar) else cell).as_buffer()
        yield Fault("text is not a string", "null") if buffer is None else buffer.to_pybytes()


def check_column(place: str, name: str, schema: pa.Schema) -> None:
    """Raise UserError unless `schema` has a column `name` of text."""
    texts = [field.name for field in schema if _is_text(field.type)]
    if name not in schema.names:
        raise no_such_column(place, name, schema.names, texts)
    if name not in texts:
        found = schema.field(name).type
        raise UserError(
            f"{place}: text_field {name!r} holds {found}, not text; columns with text: {_listed(texts)}"
        )


def no_such_column(place: str, name: str, names: list[str], texts: list[str]) -> UserError:
    """The error of a text field that a whole file lacks.

    Of `texts`, the fields that hold text, it suggests the nearest in spelling, or the only one.
    """
    spelt = {text.casefold(): text for text in texts}
    cutoff = 0.4 if len(texts) > 1 else 0.0
    close = difflib.get_close_matches(name.casefold(), spelt, n=1, cutoff=cutoff)
    hint = f"; did you mean text_field: {spelt[close[0]]}?" if close else ""
    return UserError(shown(f"{place}: no text_field {name!r}; there are {_listed(names)}{hint}"))


def _listed(names: list[str]) -> str:
    """The first names, of which a file may have any number at any length."""
    more = len(names) - _NAMES_SHOWN
    rest = [f"… and {more:,} more"] if more > 0 else []
    return ", ".join([*(name[:HEAD_CHARS] for name in names[:_NAMES_SHOWN]), *rest]) or "none"


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in (*tests, pa.types.is_binary, pa.types.is_large_binary))
