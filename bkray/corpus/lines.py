"""Text and JSON Lines as a stream, never a whole file.

    URL ─► pieces (lines, the longest in parts) ─► documents' bytes ─► text, or the field of a JSON object

A document that outgrows its limit is not held: only its length and its beginning are.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa
from fsspec.spec import AbstractBufferedFile

from bkray.config import UserError
from bkray.config.corpus import JsonlCorpus, TextCorpus
from bkray.config.patterns import LINE_BYTES, MEND, limited
from bkray.corpus.columns import no_such_column
from bkray.corpus.shard import Fault, Record, Shard, not_utf8, too_long

COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
_PIECE_BYTES = 1 << 20
_HEAD_BYTES = 320
UTF8_MAX_BYTES = 4
_JSON_MAX_BYTES = 12  # a character outside the basic plane as two \uXXXX escapes
_JSON_OTHER_BYTES = 1 << 20  # room for a row's other fields
_LINE_S = 2
"""For one line; ordinary ones take microseconds."""
_CONTINUATION = bytes(range(0x80, 0xC0))
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_text(shard: Shard, corpus: TextCorpus, max_chars: int) -> Iterator[Record]:
    """The documents of a text file, cut as `corpus.document` or `corpus.document_start` says."""
    if corpus.document_start is not None:
        opens = opens_at(corpus.document_start, shard.source)
    else:
        opens = {"file": _never, "line": _always, "paragraph": _blank}[corpus.document]
    pieces = read_pieces(shard.location)
    for ordinal, content in enumerate(group(pieces, opens, max_chars * UTF8_MAX_BYTES)):
        yield Record(shard.source, ordinal, content)


def read_jsonl(shard: Shard, corpus: JsonlCorpus, max_chars: int) -> Iterator[Record]:
    """The texts of a JSON Lines file; UserError where no row at all has the field."""
    rows = json_texts(read_pieces(shard.location), shard.source, corpus.text_field, max_chars)
    return (Record(shard.source, ordinal, text) for ordinal, text in rows)


def json_texts(
    pieces: Iterable[bytes], source: str, text_field: str, max_chars: int
) -> Iterator[tuple[int, str | Fault]]:
    """The number of each line that is not empty, and its text; UserError where none has the field."""
    other_fields: dict[str, bool] = {}  # in the order in which they appear: whether a row has text there
    field_found = False
    limit = max_chars * _JSON_MAX_BYTES + _JSON_OTHER_BYTES
    for ordinal, line in enumerate(whole_lines(pieces, limit)):
        row = line if isinstance(line, Fault) else _parse(line)
        if isinstance(row, dict):
            field_found |= text_field in row
            for name, value in () if field_found else row.items():
                other_fields[name] = other_fields.get(name, False) or isinstance(value, str)
        if row is not None:
            yield ordinal, row if isinstance(row, Fault) else _field(row, text_field)
    if other_fields and not field_found:
        texts = [name for name, holds_text in other_fields.items() if holds_text]
        raise no_such_column(source, text_field, list(other_fields), texts)


def read_pieces(url: str) -> Iterator[bytes]:
    """The lines of a file, uncompressed; those over 1 MiB in several pieces, of which the last ends in LF."""
    try:
        with fsspec.open(url, "rb", **({"block_size": 0} if _on_the_web(url) else {})) as file:
            yield from pieces_of(_uncompressed(readable(file), url))
    except OSError as error:
        if "Truncated compressed stream" in str(error):
            raise UserError(
                f"{url}: the compressed stream ends early; copy or download the file again"
            ) from error
        raise UserError(f"{url}: cannot be read: {error}") from error
    except Exception as error:  # a file system's own, such as a server's that hangs up
        raise UserError(f"{url}: cannot be read: {type(error).__name__}: {error}") from error


def pieces_of(stream: BinaryIO) -> Iterator[bytes]:
    """`read_pieces` of an open file."""
    first = stream.readline(_PIECE_BYTES).removeprefix(_BYTE_ORDER_MARK)
    if first:
        yield first
    yield from iter(lambda: stream.readline(_PIECE_BYTES), b"")


def _on_the_web(url: str) -> bool:
    """Whether a web server sends the file: as a stream (block size 0), as many send no parts of one."""
    return url.startswith(("http://", "https://"))


def readable(file: Any) -> BinaryIO:
    """`readline` of fsspec's own files goes back in them, which a stream cannot."""
    return io.BufferedReader(file, _PIECE_BYTES) if isinstance(file, AbstractBufferedFile) else file


def name_in(url: str) -> str:
    """The path in a URL, without what a web server is asked beside it (`?token=…`); else the whole."""
    return urlsplit(url).path if _on_the_web(url) else url


def _uncompressed(file: BinaryIO, url: str) -> BinaryIO:
    for suffix, codec in COMPRESSION.items():
        if name_in(url).lower().endswith(suffix):
            # Arrow's stream reports a cut file for both codecs; the zstandard package reads it as complete.
            stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), codec)
            return cast(BinaryIO, io.BufferedReader(stream, _PIECE_BYTES))
    return file


def opens_at(pattern: str, source: str) -> Callable[[bytes], bool]:
    """Whether a line (without its end) matches `pattern`; of a long one its first 1,000 bytes are looked at.

    `re` takes quadratic time for many patterns, so a line of a megabyte would take hours. Where it takes for
    ever for one line the function raises a UserError that names `source`.
    """
    search = limited(re.compile(pattern).search, _LINE_S)

    def opens(line: bytes) -> bool:
        text = line.rstrip(b"\r\n")[:LINE_BYTES].decode("utf-8", "replace")
        try:
            return search(text) is not None
        except TimeoutError:
            raise UserError(
                f"{source}: document_start {pattern!r} takes more than {_LINE_S} s for the line that begins "
                f"with {text[:40]!r}: {MEND}"
            ) from None

    return opens


def _never(line: bytes) -> bool:
    return False


def _always(line: bytes) -> bool:
    return True


def _blank(line: bytes) -> bool:
    return not line.strip()


def group(pieces: Iterable[bytes], opens: Callable[[bytes], bool], limit: int) -> Iterator[bytearray | Fault]:
    """Join pieces to documents: a line that `opens` begins a new one (blank lines between paragraphs go).

    A document over `limit` bytes becomes the fault `too long`.
    """
    document = _Document(limit)
    line_starts = True
    for piece in pieces:
        if line_starts and opens(piece):
            if document.begun:
                yield document.take()
            if opens is _blank:
                continue
        document.add(piece)
        line_starts = piece.endswith(b"\n")
    if document.begun:
        yield document.take()


def whole_lines(pieces: Iterable[bytes], limit: int) -> Iterator[bytearray | Fault]:
    """`group` of which every line is a document."""
    return group(pieces, _always, limit)


class _Document:
    """The bytes of one document, or past `limit` its length and beginning only."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = bytearray()
        self._chars: int | None = None

    @property
    def begun(self) -> bool:
        return bool(self._bytes)

    def add(self, piece: bytes) -> None:
        if self._chars is not None:
            self._chars += _count_chars(piece)
            return
        self._bytes += piece
        if len(self._bytes) > self._limit:
            self._chars = _count_chars(self._bytes)
            self._bytes = self._bytes[:_HEAD_BYTES]

    def take(self) -> bytearray | Fault:
        """Hand over the document and begin the next."""
        data, chars = self._bytes, self._chars
        self._bytes, self._chars = bytearray(), None
        return data if chars is None else too_long(chars, data.decode("utf-8", errors="replace"))


def _count_chars(data: bytes | bytearray) -> int:
    return len(data.translate(None, _CONTINUATION))


def _parse(line: bytearray) -> dict[str, object] | Fault | None:
    """A JSON object, a fault, or None for an empty line."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return not_utf8(error)
    if not text.strip():
        return None
    shape = "; write one object a line" if text.lstrip().startswith("[") or text.strip() == "{" else ""
    try:
        row = _loads(text)
    except (ValueError, RecursionError) as error:
        return Fault("malformed JSON", f"{error}: {text[:80].rstrip()}{shape}")
    if not isinstance(row, dict):
        kind = type(row).__name__
        return Fault("malformed JSON", f"expected an object, found a {kind}: {text[:80].rstrip()}{shape}")
    return row


def _loads(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # an integer of more digits than Python reads, seldom the text
        return json.loads(text, parse_int=float)


def _field(row: dict[str, object], name: str) -> str | Fault:
    if name not in row:
        return Fault("no text field", f"no {name!r} among {', '.join(row) or 'no fields'}"[:200])
    text = row[name]
    return text if isinstance(text, str) else Fault("text is not a string", f"{name!r} is {text!r}"[:200])
