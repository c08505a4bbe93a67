"""Near-duplicates among planted variants: python tests/benchmarks/bench_near_duplicates.py [DOCUMENTS]

From ../shared/data: IMDB reviews and paragraphs of WikiText-2. A tenth of the documents get a copy beside
them with 5 %, another tenth with 10 %, another with 20 % of the words replaced by those of another
document. Found: the share of the copies of which the copy or the original goes. Wrong: documents that go
without having been planted; each is nevertheless as similar to its twin as the threshold says. Precision:
of all that go the share that was planted. Crowded: documents that were not compared with all that share a
key. Then pages of one template, none of them a near-duplicate, by their number. Also the signatures of
rensa against datasketch, where that is installed, and numpy, from the same shingles, by turns. Processor
time of one core.
"""

from __future__ import annotations

import gzip
import json
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np

from bkray.corpus import row_rng
from bkray.corpus.cleaning import near_duplicates
from bkray.corpus.cleaning.hashing import words
from bkray.corpus.cleaning.near import PERMUTATIONS, shingles, signatures
from bkray.corpus.contamination import CHANGED, near_duplicate

DATA = Path(__file__).parents[3] / "shared" / "data"
ROUNDS = 5


def reviews(count: int) -> list[str]:
    with gzip.open(DATA / "imdb-train.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = list(dict.fromkeys(json.loads(line)["text"] for line in file))
    return [texts[place] for place in np.random.default_rng(0).permutation(len(texts))[:count]]


def paragraphs(count: int) -> list[str]:
    with gzip.open(DATA / "wikitext-2" / "train.txt.gz", "rt", encoding="utf-8") as file:
        texts = [line.strip() for line in file if len(line.split()) > 20]
    return list(dict.fromkeys(texts))[:count]


def planted(texts: list[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Originals and copies in an order by chance; the original of each, and the share that was changed."""
    rows = [(text, place, 0.0) for place, text in enumerate(texts)]
    for turn, share in enumerate(CHANGED):
        for place in range(turn, len(texts), 10):
            rng = row_rng(0, "planted", place)
            other = texts[(place + 1) % len(texts)].split()
            rows.append((near_duplicate(texts[place], share, other, rng), place, share))
    rows = [rows[place] for place in np.random.default_rng(1).permutation(len(rows))]
    return [row[0] for row in rows], np.array([row[1] for row in rows]), np.array([row[2] for row in rows])


def judge(texts: list[str]) -> None:
    rows, origin, share = planted(texts)
    print(f"{len(texts)} documents, {np.mean([len(text.split()) for text in texts]):.0f} words on average")
    print(
        f"{'n-gram':>6} {'threshold':>9} "
        + " ".join(f"{c:>6.0%}" for c in CHANGED)
        + "  wrong precision crowded ms/document"
    )
    for ngram, threshold in product((1, 2, 3, 5), (0.5, 0.6, 0.7, 0.8)):
        start = time.process_time()
        twin, _, crowded = near_duplicates(rows, np.zeros(len(rows), bool), threshold, ngram)
        spent = 1e3 * (time.process_time() - start) / len(rows)
        goes = np.flatnonzero(twin >= 0)
        hit = origin[goes] == origin[twin[goes]]
        found = set(origin[goes[hit]].tolist())
        recalls = [np.mean([o in found for o in origin[share == c].tolist()]) for c in CHANGED]
        print(
            f"{ngram:6} {threshold:9} "
            + " ".join(f"{r:6.2f}" for r in recalls)
            + f" {(~hit).sum():6} {hit.mean():9.3f} {crowded.sum():7} {spent:11.2f}"
        )


def templates() -> None:
    """Pages of 100 common words and 45 of their own: their similarity is 0.52."""
    rng = np.random.default_rng(0)
    common = [f"common{place}" for place in range(100)]
    for count in (600, 1200, 2400, 4800, 9600):
        texts = [" ".join([*common, *map(str, rng.integers(0, 1 << 40, 45))]) for _ in range(count)]
        start = time.process_time()
        twin, _, crowded = near_duplicates(texts, np.zeros(count, bool), 0.6, 2)
        assert (twin < 0).all()
        spent = time.process_time() - start
        print(
            f"{count:6} pages {spent:6.2f} s, {1e3 * spent / count:5.2f} ms a page, {crowded.sum():5} crowded"
        )


def libraries(texts: list[str]) -> None:
    sets = [shingles(words(text), 2) for text in texts]
    arms: dict[str, Callable[[], object]] = {
        "rensa": lambda: signatures(sets),
        "numpy": lambda: by_numpy(sets),
    }
    try:
        import datasketch
    except ImportError:
        print("datasketch is not installed: left out")
    else:
        arms["datasketch"] = lambda: by_datasketch(datasketch.MinHash, sets)
    spent: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(ROUNDS):
        for name, arm in arms.items():
            start = time.process_time()
            arm()
            spent[name].append(time.process_time() - start)
    for name, seconds in spent.items():
        ratio = np.median(np.divide(seconds, spent["rensa"]))
        print(f"{name:12} {1e6 * np.median(seconds) / len(sets):8.1f} µs a document, {ratio:5.1f} x rensa")


def by_numpy(sets: list[np.ndarray]) -> np.ndarray:
    rng = np.random.default_rng(0)
    factors = rng.integers(0, 1 << 32, PERMUTATIONS, dtype=np.uint32) | np.uint32(1)
    terms = rng.integers(0, 1 << 32, PERMUTATIONS, dtype=np.uint32)
    short = [(hashes >> np.uint64(32)).astype(np.uint32) for hashes in sets]
    return np.stack([(hashes[:, None] * factors + terms).min(axis=0) for hashes in short])


def by_datasketch(minhash: type, sets: list[np.ndarray]) -> list[np.ndarray]:
    permutations = minhash(PERMUTATIONS, seed=1).permutations
    made = []
    for hashes in sets:
        sketch = minhash(PERMUTATIONS, permutations=permutations, hashfunc=lambda x: x, scheme="affine32")
        sketch.update_batch((hashes >> np.uint64(32)).tolist())
        made.append(sketch.hashvalues)
    return made


if __name__ == "__main__":
    size = int(sys.argv[1]) if sys.argv[1:] else 5000
    for name, corpus in (("IMDB", reviews(size)), ("WikiText-2", paragraphs(size))):
        print(f"\n{name}: ", end="")
        judge(corpus)
    print("\npages of one template")
    templates()
    print("\nsignatures of 1,000 reviews")
    libraries(reviews(1000))
