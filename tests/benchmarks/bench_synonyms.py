"""Words a second of synonym replacement: python tests/benchmarks/bench_synonyms.py [TEXT FILE]

Against nlpaug's SynonymAug where it can be imported, on the same documents, by turns, in processor time of
one core. nlpaug is no dependency: pip install --no-deps --target FOLDER nlpaug gdown beautifulsoup4
soupsieve, then PYTHONPATH=FOLDER. Both draw a word in ten; nlpaug replaces more of what it draws, in any
sense and form. WordNet is loaded before.
"""

from __future__ import annotations

import statistics
import sys
import time

import pyarrow as pa

from bkray.augmentation import SynonymReplacement
from bkray.config.corpus import Cleaning, DocstringsCorpus, TextCorpus
from bkray.corpus import list_shards, read_shard

ROUNDS, DOCUMENTS, FEWER = 5, 2000, 40


def documents(path: str | None) -> pa.Table:
    corpus = (
        TextCorpus(kind="text", path=path)
        if path
        else DocstringsCorpus(kind="docstrings", packages=("networkx", "nltk"))
    )
    tables = (table for shard in list_shards(corpus) for table, _ in read_shard(shard, corpus, Cleaning(), 0))
    return pa.concat_tables(tables).slice(0, DOCUMENTS)


def words_in(texts: list[str]) -> int:
    return sum(len(text.split()) for text in texts)


def main(path: str | None) -> None:
    table = documents(path)
    texts = table["text"].to_pylist()
    augmentation = SynonymReplacement(0.1, 0)
    few = [text for text in texts if len(text.split()) > 50][:FEWER]
    arms = {"bkray": (lambda: augmentation(table), words_in(texts))}
    try:
        from nlpaug.augmenter.word import SynonymAug
    except ImportError:
        print("nlpaug cannot be imported: see the first lines of this file")
    else:
        other = SynonymAug(aug_src="wordnet", aug_p=0.1, aug_max=None)
        arms["nlpaug"] = (lambda: [other.augment(text) for text in few], words_in(few))
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(ROUNDS + 1):
        for name, (arm, words) in arms.items():
            start = time.process_time()
            arm()
            if turn:  # the first loads WordNet and fills the caches
                rates[name].append(words / (time.process_time() - start))
    changed = sum(
        old != new
        for text, made in zip(texts, augmentation(table)["text"].to_pylist(), strict=True)
        for old, new in zip(text.split(), made.split(), strict=True)
    )
    print(f"{len(texts)} documents, {words_in(texts)} words, {100 * changed / words_in(texts):.1f} % changed")
    for name, values in rates.items():
        print(f"{name:8} {statistics.median(values):12,.0f} words a second")
    if len(rates) == 2:
        ratios = [a / b for a, b in zip(rates["bkray"], rates["nlpaug"], strict=True)]
        print(f"ratio    {statistics.median(ratios):12.1f}")


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else None)
