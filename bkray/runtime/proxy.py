"""The proxy: a small model trained on a random sample of the training windows, to score all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from bkray.config import Recipe
from bkray.config.model import ResNetBKModel
from bkray.config.training import Training
from bkray.corpus import load_tokenizer
from bkray.corpus.windows import read_columns, tokens_array
from bkray.curriculum import CurriculumSampler
from bkray.model import build_model
from bkray.runtime.one_core import work_on_one_core
from bkray.training import Ledger, WindowData, export_model, train

_BATCH_WINDOWS = 16


def proxy_recipe(recipe: Recipe) -> Recipe:
    """The recipe of the proxy: the given model size and tokens, one worker, no technique."""
    assert recipe.proxy
    heads = next(h for h in (16, 8, 4, 2, 1) if recipe.proxy.d_model % h == 0)
    model = ResNetBKModel(
        kind="resnet_bk", d_model=recipe.proxy.d_model, n_layers=recipe.proxy.n_layers, n_heads=heads
    )
    training = Training(
        tokens=recipe.proxy.tokens, batch_tokens=_BATCH_WINDOWS * recipe.window, lr=recipe.proxy.lr, workers=1
    )
    plain = {"difficulty": None, "selection": None, "proxy": None, "curriculum": None, "sampling": None}
    return recipe.model_copy(update={**plain, "model": model, "training": training})


@ray.remote(num_cpus=1)
def train_proxy(
    recipe: Recipe, parts: list[Path], tokenizer: Path, directory: Path
) -> dict[str, dict[str, Any]]:
    """Train and export the proxy into `directory`; return its ledger table.

    Windows lie in the order of their ids, which are hashes: the first ones are a random sample. One thread,
    so that the weights do not depend on the machine's cores.
    """
    work_on_one_core()
    small = proxy_recipe(recipe)
    needed = small.steps * small.batch_windows
    sample = _first_windows(parts, needed)
    torch.manual_seed(recipe.seed)
    path = tokenizer / "tokenizer.json"
    vocab_size = load_tokenizer(path).get_vocab_size()
    model = build_model(small.model, vocab_size)
    sampler = CurriculumSampler(
        np.zeros(len(sample)), small.batch_windows, small.steps, start=1.0, seed=recipe.seed
    )
    spent = Ledger()
    train(model, WindowData(sample, sample[:0]), sampler, small, ledger=spent)
    export_model(directory / "exported", model, small, path, vocab_size, {})
    for file in (directory / "exported").iterdir():
        file.rename(directory / file.name)
    (directory / "exported").rmdir()
    ledger = Ledger()
    for cost in spent.table().values():
        ledger.charge("proxy_training", **cost)
    return ledger.table()


def _first_windows(parts: list[Path], count: int) -> np.ndarray:
    """Tokens of the first `count` training windows: (count, N + 1), or fewer where there are no more."""
    taken: list[np.ndarray] = []
    for part in parts:
        taken.append(tokens_array(read_columns([part], ["tokens"], "train")))
        if sum(map(len, taken)) >= count:
            break
    return np.concatenate(taken)[:count]
