"""Back-translation: python tests/benchmarks/bench_translation.py [DOCUMENTS] [TEXT_FILE [DOCUMENT_START]]

Of DOCUMENTS (300) docstrings, or documents of TEXT_FILE, by Apertium from English to Spanish and back: words
a second of processor time, the translator's programs included; how many documents the bounds drop, and why;
chrF of copy and original; the share of a copy's word n-grams that its original holds too, and the same share
for copies by random deletion; the words that stay Spanish; examples from both ends and the middle.
"""

from __future__ import annotations

import resource
import sys
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from bkray.augmentation import BackTranslation, RandomDeletion
from bkray.augmentation.apertium import Apertium
from bkray.augmentation.similarity import chrf
from bkray.config.corpus import Cleaning, DocstringsCorpus, TextCorpus
from bkray.corpus import list_shards, read_shard

ORDERS = (1, 2, 3, 4)
SHOWN = 220  # characters of an example


def documents(count: int, path: str | None, start: str | None) -> pa.Table:
    corpus = (
        TextCorpus(kind="text", path=path, document_start=start)
        if path
        else DocstringsCorpus(kind="docstrings", packages=("networkx", "nltk"))
    )
    tables = (table for shard in list_shards(corpus) for table, _ in read_shard(shard, corpus, Cleaning(), 0))
    whole = pa.concat_tables(tables)
    return whole.take(np.random.default_rng(0).permutation(whole.num_rows)[:count])


def words_in(texts: Sequence[str]) -> int:
    return sum(len(text.split()) for text in texts)


def processor_seconds(call: Callable[[], list[str]]) -> tuple[list[str], float]:
    """What `call` returns, and the processor seconds of this process and of those that it started."""

    def spent() -> float:
        whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, whose))

    before = spent()
    return call(), spent() - before


def shared_ngrams(copies: Sequence[str], originals: Sequence[str], order: int) -> float:
    """The share of the copies' n-grams of words that their originals hold too."""
    common = total = 0
    for copy, original in zip(copies, originals, strict=True):
        mine, theirs = _ngrams(copy, order), _ngrams(original, order)
        common, total = common + (mine & theirs).total(), total + mine.total()
    return common / max(1, total)


def _ngrams(text: str, order: int) -> Counter[tuple[str, ...]]:
    words = text.split()
    return Counter(zip(*(words[place:] for place in range(order)), strict=False))


def left_in_spanish(copies: Sequence[str], pivots: Sequence[str], originals: Sequence[str]) -> float:
    """The share of the copies' words that the pivot holds and the original does not."""
    left = 0
    for copy, pivot, original in zip(copies, pivots, originals, strict=True):
        spanish = set(pivot.lower().split()) - set(original.lower().split())
        left += sum(word in spanish for word in copy.lower().split())
    return left / max(1, words_in(copies))


def main(count: int, path: str | None, start: str | None) -> None:
    table = documents(count, path, start)
    texts, translator = table["text"].to_pylist(), Apertium()
    translator.check()
    pivots, there = processor_seconds(lambda: translator.forth(texts))
    copies, back = processor_seconds(lambda: translator.back(pivots))
    words = words_in(texts)
    print(f"{len(texts):,} documents, {words:,} words; words a second of processor time:")
    rates = [f"{words / seconds:,.0f}" for seconds in (there, back, there + back)]
    print("  forth {}, back {}, there and back {}".format(*rates))
    chosen = BackTranslation(translator)
    faults = Counter(chosen.fault(new, old) for new, old in zip(copies, texts, strict=True))
    for reason, number in faults.items():
        print(f"  {reason or 'made':10} {number:6,} = {number / len(texts):.1%}")
    similar = np.array([chrf(new, old) for new, old in zip(copies, texts, strict=True)])
    quantiles = np.quantile(similar, [0, 0.01, 0.25, 0.5, 0.75, 0.99, 1])
    print(f"  chrF at 0, 1, 25, 50, 75, 99, 100 %: {' '.join(f'{q:.2f}' for q in quantiles)}")
    deleted = RandomDeletion(0.1, 0)(table)["text"].to_pylist()
    for name, made in (("back-translation", copies), ("deletion 0.1", deleted)):
        shares = ", ".join(f"{order}: {shared_ngrams(made, texts, order):.2f}" for order in ORDERS)
        print(f"  word n-grams of the original in {name}, by n: {shares}")
    print(f"  words that stay Spanish: {left_in_spanish(copies, pivots, texts):.1%}")
    order = np.argsort(similar)
    for place in (*order[:2], *order[len(order) // 2 :][:2], *order[-2:]):
        print(f"--- chrF {similar[place]:.2f}\n{texts[place][:SHOWN]}\n  =>\n{copies[place][:SHOWN]}")


if __name__ == "__main__":
    given = sys.argv[1:]
    number = int(given.pop(0)) if given and given[0].isdigit() else 300
    file, pattern = [*given, None, None][:2]
    main(number, file, pattern)
