"""Words a second of synonym replacement: python tests/benchmarks/bench_synonyms.py [TEXT FILE]

Against nlpaug's SynonymAug where it can be imported, by turns on the same slices of the text, none of which
either has seen, in processor time of one core: the first slice (cold: with empty caches) and the later ones
(warm: with what they have of earlier slices). nlpaug is no
dependency: pip install --no-deps --target FOLDER nlpaug gdown beautifulsoup4 soupsieve, then
PYTHONPATH=FOLDER. Both draw a word in ten; nlpaug replaces more of what it draws, in any sense and form.
WordNet and the taggers are loaded before.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import pyarrow as pa

from bkray.augmentation import SynonymReplacement
from bkray.config.corpus import Cleaning, DocstringsCorpus, TextCorpus
from bkray.corpus import DOCUMENTS, list_shards, read_shard

SLICES, WORDS = 6, 20_000  # of so many words each, or of less where the text has less
WARM_UP = "The old house stood beside a large river ."


def documents(path: str | None) -> pa.Table:
    corpus = (
        TextCorpus(kind="text", path=path)
        if path
        else DocstringsCorpus(kind="docstrings", packages=("networkx", "nltk"))
    )
    tables = (table for shard in list_shards(corpus) for table, _ in read_shard(shard, corpus, Cleaning(), 0))
    return pa.concat_tables(tables)


def words_in(texts: list[str]) -> int:
    return sum(len(text.split()) for text in texts)


def slices(table: pa.Table) -> list[pa.Table]:
    """Consecutive documents of about WORDS words each, none of them in two."""
    size = min(WORDS, words_in(table["text"].to_pylist()) // SLICES)
    made, first, words = [], 0, 0
    for row, text in enumerate(table["text"].to_pylist()):
        words += len(text.split())
        if words >= size:
            made.append(table.slice(first, row + 1 - first))
            first, words = row + 1, 0
    return made[:SLICES]


def arms() -> dict[str, Callable[[pa.Table], object]]:
    augmentation = SynonymReplacement(0.1, 0)
    found: dict[str, Callable[[pa.Table], object]] = {"bkray": augmentation}
    try:
        from nlpaug.augmenter.word import SynonymAug
    except ImportError:
        print("nlpaug cannot be imported: see the first lines of this file")
    else:
        other = SynonymAug(aug_src="wordnet", aug_p=0.1, aug_max=None)
        found["nlpaug"] = lambda table: [other.augment(text) for text in table["text"].to_pylist()]
    return found


def warm_up(arm: Callable[[pa.Table], object]) -> None:
    row = {"doc_id": 0, "text": WARM_UP, "source": "", "split": "train"}
    arm(pa.Table.from_pylist([row], schema=DOCUMENTS))


def main(path: str | None) -> None:
    pieces, compared = slices(documents(path)), arms()
    for arm in compared.values():
        warm_up(arm)
    rates: dict[str, list[float]] = {name: [] for name in compared}
    for turn, piece in enumerate(pieces):
        names = list(compared) if turn % 2 else list(compared)[::-1]
        for name in names:
            begin = time.process_time()
            compared[name](piece)
            spent = time.process_time() - begin
            rates[name].append(words_in(piece["text"].to_pylist()) / spent)
    report(pieces, rates)


def report(pieces: list[pa.Table], rates: dict[str, list[float]]) -> None:
    texts = pa.concat_tables(pieces)
    made = SynonymReplacement(0.1, 0)(texts)["text"].to_pylist()
    changed = sum(
        old != new
        for text, copy in zip(texts["text"].to_pylist(), made, strict=True)
        for old, new in zip(text.split(), copy.split(), strict=True)
    )
    words = words_in(texts["text"].to_pylist())
    print(f"{texts.num_rows} documents, {words} words, {100 * changed / words:.1f} % changed")
    for name, (cold, *warm) in rates.items():
        print(f"{name:8} {cold:12,.0f} words a second cold {statistics.median(warm):12,.0f} warm")
    if len(rates) == 2:
        cold, *warm = (a / b for a, b in zip(rates["bkray"], rates["nlpaug"], strict=True))
        print(f"ratio    {cold:12.1f} {'':19} {statistics.median(warm):12.1f}")


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else None)
