"""Data sets of the Hugging Face hub (or a local folder that `datasets` reads).

name, config, revision ─► one shard a split ─► rows, or documents of several rows (document_start)

Everything is downloaded once; the first `rows` of a split, where they are given, come as a stream. JSON
Lines, CSV and text are parsed by hub_files.py; of all else `datasets` makes tables, memory-mapped, or of a
stream one row at a time, where it holds a piece itself: a row group of Parquet.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from bkray.config import UserError
from bkray.config.corpus import HubCorpus
from bkray.corpus.columns import cells, check_column
from bkray.corpus.hub_files import Content, parsed_here, read_files
from bkray.corpus.lines import UTF8_MAX_BYTES, group, opens_at
from bkray.corpus.shard import Fault, Record, Shard, own_splits, split_named

T = TypeVar("T")

_ROWS = 128  # of a memory-mapped table: none is copied before it is asked for


def list_hub(corpus: HubCorpus) -> list[Shard]:
    """One shard a split; other splits than train, validation and test are left out where there is a train."""
    import datasets

    local = os.path.isdir(corpus.name)
    location = os.path.abspath(corpus.name) if local else corpus.name
    builder = _load(corpus, datasets.load_dataset_builder, location, corpus.config, revision=corpus.revision)
    infos = builder.info.splits or {}
    names = sorted(str(name) for name in (infos or builder.config.data_files or ()))
    if not names:
        raise UserError(f"corpus.name {corpus.name!r}: the data set has no splits, so the corpus is empty")
    if isinstance(corpus.rows, dict):
        _check_splits(corpus.rows, names)
        names = sorted(corpus.rows)
    elif "train" in map(split_named, names):
        names = [name for name in names if split_named(name)]
    sizes = {name: _size(infos[name], corpus.rows_of(name)) for name in names if name in infos}
    base = "/".join(filter(None, (Path(location).name if local else location, corpus.config)))
    return [
        Shard("hub", location, f"{base}/{name}", split, carve, str(builder.hash), sizes.get(name, 0))
        for name, (split, carve) in zip(names, own_splits(names), strict=True)
    ]


def read_hub(shard: Shard, corpus: HubCorpus, max_chars: int) -> Iterator[Record]:
    """The texts of one split, row by row or gathered at `corpus.document_start`."""
    contents: Iterator[Content] = islice(_rows(shard, corpus, max_chars), corpus.rows_of(_split(shard)))
    if corpus.document_start is not None:
        faults: list[Content] = []
        lines = _lines(contents, faults)
        opens = opens_at(corpus.document_start, shard.source)
        documents = group(lines, opens, max_chars * UTF8_MAX_BYTES)
        contents = chain(documents, faults)
    for ordinal, content in enumerate(contents):
        yield Record(shard.source, ordinal, content)


def _rows(shard: Shard, corpus: HubCorpus, max_chars: int) -> Iterator[Content]:
    """The text of each row of a split, or why it has none."""
    import datasets

    split, count = _split(shard), corpus.rows_of(_split(shard))
    streamed = count is not None
    asked = (shard.location, corpus.config)
    builder = _load(corpus, datasets.load_dataset_builder, *asked, revision=corpus.revision)
    if parsed_here(builder, corpus.text_field):
        fields = (shard.source, corpus.text_field, max_chars)
        contents = _load(corpus, read_files, builder, split, *fields, streamed)
        if contents is not None:
            while (content := _load(corpus, next, contents, None)) is not None:
                yield content
            return
    chosen = {"split": split, "revision": corpus.revision, "streaming": streamed}
    rows = _load(corpus, datasets.load_dataset, *asked, **chosen)
    rows = rows.take(count) if streamed else rows
    yield from _cells(_tables(corpus, rows), shard.source, corpus.text_field)


def _split(shard: Shard) -> str:
    """Its name on the hub."""
    return shard.source.rsplit("/", 1)[-1]


def _check_splits(rows: Mapping[str, int], names: Sequence[str]) -> None:
    unknown = ", ".join(sorted(rows.keys() - set(names)))
    if unknown or not rows:
        what = f"the data set has no split {unknown}; it has" if unknown else "no split is named; there are"
        raise UserError(f"corpus.rows: {what} {', '.join(names)}")


def _size(info: Any, rows: int | None) -> int:
    """Bytes of a split, or of its first `rows`; 0 where the data set does not say."""
    size, count = info.num_bytes or 0, info.num_examples or 0
    return size if rows is None or rows >= count else size * rows // count


def _tables(corpus: HubCorpus, rows: Any) -> Iterator[pa.Table]:
    """The rows, of a stream one at a time; what it meets on its way is an error of loading too."""
    tables = iter(rows.with_format("arrow").iter(_ROWS if corpus.rows is None else 1))
    while (table := _load(corpus, next, tables, None)) is not None:
        yield table


def _cells(tables: Iterable[pa.Table], source: str, column: str) -> Iterator[bytes | Fault]:
    for number, table in enumerate(tables):
        if number == 0:
            check_column(source, column, table.schema)
        for chunk in table[column].chunks:
            yield from cells(chunk)


def _lines(contents: Iterable[Content], faults: list[Content]) -> Iterator[bytes]:
    """Rows as the lines of longer documents; those without text go to `faults`, each with its number."""
    for number, content in enumerate(contents):
        if isinstance(content, Fault):
            faults.append(Fault(content.reason, f"{content.detail}, row {number}"))
        else:
            line = content.encode(errors="surrogatepass") if isinstance(content, str) else bytes(content)
            yield line if line.endswith(b"\n") else line + b"\n"


def _load(corpus: HubCorpus, load: Callable[..., T], *arguments: Any, **options: Any) -> T:
    try:
        return load(*arguments, **options)
    except UserError:
        raise
    except Exception as error:  # whatever the library, the network or the files raise, the mend is the user's
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise UserError(
            f"corpus.name {corpus.name!r} (config {corpus.config!r}): datasets cannot load it: {error}{cause}"
            "\nCheck the name, the configuration and the network; without a network use a file: "
            "corpus={kind: text, path: ...}"
        ) from error
