"""What memory a large corpus takes: bench_memory.py DATA [KEY=VALUE …] [--gb 2] [--cpus 2]
[--until STAGE] [--out runs/memory]

DATA is what transfer_data.py leaves. Its pool is copied until there are GB (2) times 10^9 bytes of text, in
every copy another 35 % of the words replaced by words of the pool, so that no two are near-duplicates; that
goes through every data stage and a short training. Prints of each stage the seconds, and the most that all
processes held beyond a Ray node with nothing to do. Pages that several processes share count once; the
largest sum of a look every two seconds. An interrupted run goes on. KEY=VALUE changes the recipe.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from compare import held_bytes
from transfer_data import rows

from bkray.config import Recipe, apply_overrides, parse_recipe
from bkray.reporting.progress import Line, Progress
from bkray.runtime.cluster import cluster
from bkray.runtime.pipeline import run_pipeline

LOOK_S = 2.0
IDLE_S = 15.0
REPLACED = 0.35


def copies(pool: Path, out: Path, size: float) -> None:
    """Files in `out` with about `size` bytes of text, a copy of the pool each."""
    out.mkdir(parents=True, exist_ok=True)
    texts = [row["text"] for row in rows(pool)]
    words = [word for text in texts for word in text.split()]
    each = sum(len(text.encode()) for text in texts)
    for number in range(max(2, round(size / each))):
        file = out / f"copy-{number:03}.jsonl"
        if file.exists():
            continue
        draw = random.Random(number)
        with file.with_suffix(".part").open("w") as lines:
            for text in texts:
                lines.write(json.dumps({"text": replaced(text, words, draw) if number else text}) + "\n")
        file.with_suffix(".part").rename(file)


def replaced(text: str, words: list[str], draw: random.Random) -> str:
    return " ".join(draw.choice(words) if draw.random() < REPLACED else word for word in text.split())


def recipe(data: Path, corpus: Path, overrides: list[str]) -> Recipe:
    """Every stage once, with a small model."""
    wikitext = {"kind": "text", "path": str(data / "wikitext-2"), "document_start": "^ = [^=].* = $"}
    return parse_recipe(
        apply_overrides(
            {
                "name": "memory",
                "corpus": {"kind": "jsonl", "path": str(corpus), "validation": 0.0005, "test": 0.0005},
                "cleaning": {
                    "exact": True,
                    "near": {},
                    "quality": {
                        "sample": {"kind": "jsonl", "path": str(data / "reviews.jsonl.gz")},
                        "lose": 0.001,
                    },
                    "leakage": {"held_out_of": {"wikitext": wikitext}},
                    "nearest": {"to": wikitext, "keep": 0.8},
                },
                "tokenizer": {"vocab_size": 2048},
                "augmentation": [{"kind": "deletion", "probability": 0.1, "share": 0.1}],
                "difficulty": {"kind": "loss"},
                "proxy": {"d_model": 16, "n_layers": 1, "tokens": 100_000},
                "selection": {"kind": "entropy", "keep": 0.8, "diversity": {}},
                "curriculum": {"pacing": "linear", "start": 0.3},
                "model": {"kind": "resnet_bk", "d_model": 64, "n_layers": 1},
                "training": {"tokens": 100_000, "batch_tokens": 2048, "workers": 2},
                "samples": None,
            },
            overrides,
        )
    )


class Watched(Progress):
    """Notes the most that this process and all below it hold, stage by stage."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most, self.seconds = "start", defaultdict[str, int](int), dict[str, float]()
        threading.Thread(target=self._look, daemon=True).start()

    @contextmanager
    def stage(self, name: str) -> Iterator[Line]:
        self.now = name
        with super().stage(name) as line:
            yield line
        self.now, self.seconds[name] = "between", line.seconds

    def _look(self) -> None:
        while True:
            self.most[self.now] = max(self.most[self.now], held_bytes(psutil.Process()))
            time.sleep(LOOK_S)


def idle(cpus: int | None) -> int:
    """Bytes of a Ray node that has nothing to do, without the process that started it."""
    with cluster(cpus):
        time.sleep(IDLE_S)
        return held_bytes(psutil.Process()) - psutil.Process().memory_full_info().pss


def main(given: Any) -> None:
    corpus = given.out / "corpus"
    copies(given.data / "pool.jsonl.gz", corpus, given.gb * 1e9)
    rays_own = idle(given.cpus)
    watched = Watched()
    changed = recipe(given.data, corpus, given.overrides)
    run_pipeline(changed, given.out, until=given.until, cpus=given.cpus, progress=watched)
    size = sum(file.stat().st_size for file in corpus.glob("*.jsonl"))
    print(
        f"{size / 1e9:.2f} GB in {len(list(corpus.glob('*.jsonl')))} files; Ray's own {rays_own / 1e9:.2f} GB"
    )
    print("| stage | s | GB beyond Ray's own |")
    print("|---|---|---|")
    for name, most in watched.most.items():
        print(f"| {name} | {watched.seconds.get(name, 0):.0f} | {(most - rays_own) / 1e9:.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--until", default="evaluation", metavar="STAGE", help="the last stage")
    parser.add_argument("--cpus", type=int)
    parser.add_argument("--out", type=Path, default=Path("runs/memory"))
    main(parser.parse_args())
