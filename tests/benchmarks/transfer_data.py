"""Text for bench_transfer.py: transfer_data.py SHARED OUT [REVIEWS_MB NOVELS_MB]

From the corpora in the folder SHARED: OUT/pool.jsonl.gz, a general pool of web pages (10 MB), film reviews
(22 MB) and novels (32 MB), and four targets of which nothing is in the pool: OUT/wikitext-2,
OUT/reviews.jsonl.gz and OUT/reviews-2.jsonl.gz (other reviews) and OUT/novelist.jsonl.gz (one novelist's
chapters).
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

NOVELIST = "Dickens"
REVIEWS = 2_500
CHAPTER = 6_000


def rows(file: Path) -> list[dict[str, str]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def chapters(text: str) -> Iterator[str]:
    """Parts of a novel of CHAPTER characters or a line more."""
    part = ""
    for line in text.removeprefix("\ufeff").replace("\r\n", "\n").splitlines(keepends=True):
        part += line
        if len(part) >= CHAPTER:
            yield part
            part = ""
    if part:
        yield part


def up_to(size: int, texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        size -= len(text)
        if size < 0:
            return
        yield text


def write(file: Path, texts: Iterable[str]) -> None:
    with gzip.GzipFile(file, "wb", mtime=0) as out:
        for text in texts:
            out.write((json.dumps({"text": text}) + "\n").encode())
    print(f"{file}: {file.stat().st_size:,} bytes")


def main(shared: Path, out: Path, reviews_mb: int, novels_mb: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    shutil.copytree(shared / "wikitext-2", out / "wikitext-2", dirs_exist_ok=True)
    draw = random.Random(0)
    reviews = sorted({row["text"].replace("<br />", "\n") for row in rows(shared / "imdb-train.jsonl.gz")})
    draw.shuffle(reviews)
    write(out / "reviews.jsonl.gz", reviews[:REVIEWS])
    write(out / "reviews-2.jsonl.gz", reviews[-REVIEWS:])
    novels = rows(shared / "english-novels-100.jsonl.gz")
    own = [part for row in novels if row["author"] == NOVELIST for part in chapters(row["text"])]
    write(out / "novelist.jsonl.gz", own)
    others = [part for row in novels if row["author"] != NOVELIST for part in chapters(row["text"])]
    draw.shuffle(others)
    pool = [
        row["text"]
        for name in ("c4-en-1000", "openwebtext-1000")
        for row in rows(shared / f"{name}.jsonl.gz")
    ]
    pool += [row["prefix"] + row["gold_completion"] for row in rows(shared / "c4-prefix-1480.jsonl.gz")]
    pool += up_to(1_000_000 * reviews_mb, reviews[REVIEWS:-REVIEWS])
    pool += up_to(1_000_000 * novels_mb, others)
    draw.shuffle(pool)
    write(out / "pool.jsonl.gz", pool)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("shared", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("reviews_mb", type=int, nargs="?", default=22)
    parser.add_argument("novels_mb", type=int, nargs="?", default=32)
    given = parser.parse_args()
    main(given.shared, given.out, given.reviews_mb, given.novels_mb)
