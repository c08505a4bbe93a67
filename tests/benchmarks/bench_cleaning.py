"""Precision and recall of each filter on raw pools: python tests/benchmarks/bench_cleaning.py [DOCUMENTS]

From ../shared/data. Two targets, IMDB reviews and paragraphs of WikiText-2; the other one, C4 and
OpenWebText, cut to the target's length, are its off-domain text. Half of each pool is spoilt, a quarter of
that by each kind. The trusted sample is other text of the target: 2,000 reviews, or the validation split.
For each filter: the share of each kind that goes (of near-duplicates: of pairs of which one goes), the
share of the clean text that is kept, and how much of what goes is spoilt; then the area under the curve of
each score. Processor time of one core.
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from bkray.corpus import copies, stable_id, text_hash
from bkray.corpus.cleaning import QualityFilter, count_unigrams, near_duplicates
from bkray.corpus.cleaning.quality import SCORES
from bkray.corpus.contamination import CLEAN, KINDS, contaminate

DATA = Path(__file__).parents[3] / "shared" / "data"
THRESHOLD, NGRAM, LOSE = 0.6, 2, (0.02, 0.05, 0.1)


def lines(name: str) -> Iterator[str]:
    with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
        yield from file


def reviews() -> list[str]:
    """Shuffled: the file is ordered by label. Its 96 exact duplicates are in it."""
    texts = [json.loads(line)["text"] for line in lines("imdb-train.jsonl.gz")]
    return [texts[place] for place in np.random.default_rng(0).permutation(len(texts))]


def paragraphs(split: str) -> list[str]:
    return [line.strip() for line in lines(f"wikitext-2/{split}.txt.gz") if len(line.split()) > 20]


def web() -> list[str]:
    names = ("c4-en-1000.jsonl.gz", "openwebtext-1000.jsonl.gz")
    return [json.loads(line)["text"] for name in names for line in lines(name)]


def pieces(texts: list[str], words: int) -> Iterator[str]:
    """Runs of about `words` words, by chance from all of the texts."""
    split = (text.split() for text in texts)
    cut = [" ".join(part[at : at + words]) for part in split for at in range(0, len(part), words)]
    return (cut[place] for place in np.random.default_rng(1).permutation(len(cut)))


def judge(name: str, target: list[str], sample: list[str], others: list[str]) -> None:
    table = pa.table({"doc_id": [stable_id(name, row) for row in range(len(target))], "text": target})
    words = round(np.mean([len(text.split()) for text in target]))
    (pool,) = contaminate([table], list(KINDS), 0.5, 0, pieces(others, words))
    pool = pool.append_column("doc_id", pa.array([stable_id(name, "pool", row) for row in range(len(pool))]))
    pool = pool.sort_by("doc_id")
    texts = pool["text"].to_pylist()
    print(
        f"\n{name}: {len(target):,} documents of {words} words, {len(pool):,} rows, sample of {len(sample):,}"
    )
    print(
        f"{'':22}" + "".join(f"{kind:>15}" for kind in KINDS) + f"{'clean kept':>12}{'precision':>11}{'s':>8}"
    )
    near = timed(
        pool, "near", lambda: near_duplicates(texts, np.zeros(len(texts), bool), THRESHOLD, NGRAM)[0]
    )
    exact = timed(pool, "exact", lambda: exact_duplicates(pool))
    for lose in LOSE:
        quality = timed(pool, f"quality, lose {lose:g}", lambda lose=lose: unlike(texts, sample, lose))
        if lose == LOSE[0]:
            together = np.where(near >= 0, near, np.where(exact | quality, -2, -1))
    show(pool, f"all, lose {LOSE[0]:g}", together, None)
    separate(pool, QualityFilter.fit(sample, count_unigrams(texts), LOSE[0]).z(texts))


def separate(pool: pa.Table, z_DS: np.ndarray) -> None:
    """How well each score alone tells a kind from clean text: the area under the curve, 0.5 by chance."""
    kinds = np.array(pool["kind"].to_pylist())
    for name, values in (*zip(SCORES, z_DS.T, strict=True), ("lower of both", z_DS.min(axis=1))):
        ranks = np.argsort(np.argsort(values))
        clean = ranks[kinds == CLEAN]
        areas = []
        for kind in KINDS:
            below = np.searchsorted(np.sort(ranks[kinds == kind]), clean)
            areas.append(below.mean() / (kinds == kind).sum())
        print(f"{'area, ' + name:22}" + "".join(f"{area:15.3f}" for area in areas))


def exact_duplicates(pool: pa.Table) -> np.ndarray:
    hashes = pa.array([text_hash(text) for text in pool["text"].to_pylist()])
    return copies(pool.append_column("text_hash", hashes))


def unlike(texts: list[str], sample: list[str], lose: float) -> np.ndarray:
    quality = QualityFilter.fit(sample, count_unigrams(texts), lose)
    return quality.z(texts).min(axis=1) < quality.threshold


def timed(pool: pa.Table, name: str, filter_: Callable[[], np.ndarray]) -> np.ndarray:
    start = time.process_time()
    found = filter_()
    spent = time.process_time() - start
    show(pool, name, found if found.dtype != bool else np.where(found, -2, -1), spent)
    return found


def show(pool: pa.Table, name: str, twin: np.ndarray, spent: float | None) -> None:
    """One line; `twin`: the twin's row, -1 for a row that is kept, -2 for one that goes without a twin."""
    kinds, goes = np.array(pool["kind"].to_pylist()), twin != -1
    origin = np.array([-1 if value is None else value for value in pool["origin"].to_pylist()])
    pair = (twin >= 0) & (origin >= 0) & (origin == origin[twin])  # either of a planted pair may go
    paired = set(origin[pair].tolist())
    recall = {kind: goes[kinds == kind].mean() for kind in KINDS}
    near = kinds == "near_duplicate"
    recall["near_duplicate"] = np.mean(
        [g or o in paired for g, o in zip(goes[near], origin[near], strict=True)]
    )
    wrong = goes & (kinds == CLEAN) & ~pair
    kept = 1 - wrong.sum() / (kinds == CLEAN).sum()
    precision = 1 - wrong.sum() / max(1, goes.sum())
    seconds = f"{spent:8.1f}" if spent is not None else ""
    print(
        f"{name:22}"
        + "".join(f"{recall[kind]:15.3f}" for kind in KINDS)
        + f"{kept:12.3f}{precision:11.3f}{seconds}"
    )


if __name__ == "__main__":
    size = int(sys.argv[1]) if sys.argv[1:] else 10_000
    imdb, wiki = reviews(), paragraphs("train")
    judge("IMDB", imdb[2000 : 2000 + size], imdb[:2000], web() + wiki)
    judge("WikiText-2", wiki[:size], paragraphs("valid"), web() + imdb[:2000])
