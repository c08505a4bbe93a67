"""Tests run on few cores beside each other's processes: one thread each; nltk's data may lie beside."""

import contextlib
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAYON_NUM_THREADS", "2")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
NLTK_DATA = Path(__file__).parents[2] / "shared" / "data" / "nltk_data"
if NLTK_DATA.exists():  # before nltk is imported, and for the workers too
    os.environ.setdefault("NLTK_DATA", str(NLTK_DATA))

WORDS = (  # noqa: SIM905 - a list literal would take a line a word
    "the scan of a matrix returns every row that an operator keeps while values and keys are sorted by size "
    "in linear time so each state holds only what was read before it"
).split()
SYLLABLES = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in "lmnrst"]


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """A small corpus of two JSON Lines files; made here, so that nothing has to be downloaded."""
    folder = tmp_path_factory.mktemp("corpus")
    random_ = random.Random(0)
    for name in ("a.jsonl", "b.jsonl"):
        lines = []
        for _ in range(40):
            start = random_.randrange(len(WORDS))
            count = random_.randrange(60, 160)
            lines.append(
                " ".join(WORDS[(start + i + (random_.random() < 0.1)) % len(WORDS)] for i in range(count))
            )
        (folder / name).write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return folder


@pytest.fixture
def kill_node():
    """Kill a process and all below it: of a local run all that Ray started."""

    def kill(process):
        driver = psutil.Process(process.pid)
        for member in [*driver.children(recursive=True), driver]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()

    return kill


@pytest.fixture
def in_browser(tmp_path):
    """The document that a real browser makes of a page, as text."""
    if shutil.which("chromium") is None:
        pytest.skip("Chromium is not installed")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --dump-dom"
    )

    def dom(path):
        command = ["chromium", *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    return dom


@pytest.fixture
def small(tmp_path, texts):
    """A recipe with every technique, of a size that trains in seconds: the path of its YAML file."""
    recipe = {
        "name": "small",
        "corpus": {"kind": "jsonl", "path": str(texts), "validation": 0.1, "test": 0.1},
        "tokenizer": {"vocab_size": 300},
        "window": 48,
        "augmentation": [{"kind": "deletion", "probability": 0.1}, {"kind": "swap"}],
        "difficulty": {"kind": "loss"},
        "proxy": {"d_model": 16, "n_layers": 1, "tokens": 8000},
        "selection": {"kind": "entropy", "keep": 0.7},
        "curriculum": {"pacing": "root", "start": 0.3, "adjuster": {"patience": 1}},
        "sampling": {"weight": "rarity", "share": 0.8},
        "model": {"kind": "resnet_bk", "d_model": 32, "n_layers": 1},
        "training": {
            "tokens": 20_000,
            "batch_tokens": 384,
            "eval_every": 10,
            "eval_windows": 16,
            "checkpoint_every": 10,
            "trackers": ["tensorboard"],
            "skip": {"share": 0.2},
            "average": {"decay": 0.9},
        },
        "samples": {"prompts": ["the scan"], "tokens": 12},
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture
def filtering(small, tmp_path):
    """The small recipe with every filter, on text of which each takes some out."""
    rng = np.random.default_rng(0)
    train, sample, target = ([_prose(rng) for _ in range(count)] for count in (200, 150, 60))
    near = [f"{text} other" for text in train[:20]]
    shuffled = [" ".join(rng.permutation(_prose(rng).split())) for _ in range(20)]
    files = {"pool/a": train + near, "pool/b": shuffled + target, "sample": sample, "target": target}
    (tmp_path / "pool").mkdir()
    for name, texts in files.items():
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{name}.jsonl").write_text(rows)
    pool, trusted, wanted = (
        {"kind": "jsonl", "path": str(tmp_path / path)} for path in ("pool", "sample.jsonl", "target.jsonl")
    )
    recipe = yaml.safe_load(small.read_text()) | {
        "corpus": pool,
        "cleaning": {
            "leakage": {"held_out_of": {"target": wanted | {"test": 0.3}}},
            "near": {},
            "quality": {"sample": trusted},
            "nearest": {"to": wanted, "keep": 0.7},
        },
    }
    small.write_text(yaml.safe_dump(recipe))
    return small


def _prose(rng):
    """Text in which each word has eight possible successors, so that its order can be learned."""
    place, chosen = int(rng.integers(len(SYLLABLES))), []
    for _ in range(60):
        chosen.append(SYLLABLES[place])
        place = (place * 7 + int(rng.integers(8))) % len(SYLLABLES)
    return " ".join(chosen)
