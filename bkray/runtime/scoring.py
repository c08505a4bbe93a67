"""The stages that need a model to prepare data: the proxy, and the scores of every training window.

windows ─► proxy (one small training run) ─► scored: actors that hold the proxy, one window at a time
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import Dataset

from bkray.config import Recipe
from bkray.corpus import load_tokenizer
from bkray.corpus.schema import row_rng, score_array, score_field, windows_schema
from bkray.corpus.windows import tokens_array
from bkray.difficulty import compression_ratio, rarity, score_windows
from bkray.runtime.cluster import TASK_CPUS
from bkray.runtime.plan import chosen_scores
from bkray.runtime.proxy import train_proxy
from bkray.runtime.stages import actors, map_tables, read_parts, write_parts
from bkray.runtime.work import Outcome, Work
from bkray.selection import MEASURES
from bkray.training import Ledger, load_model
from bkray.training.cost.flops import forward_flops
from bkray.training.state.start import vocabulary_size

_BLOCK_ROWS = 512  # windows a task: small enough to share them evenly and to show progress
_SCORE_BATCH = 64  # windows an actor takes at a time; they are scored one by one


def proxy(work: Work) -> Outcome:
    """Train the small scoring model in one process; its cost is charged."""
    ledger = Ledger(
        ray.get(
            train_proxy.remote(
                work.recipe, work.inputs["windows"].parts, work.inputs["tokenizer"].path, work.directory
            )
        )
    )
    tokens = ledger.table()["proxy_training"]["tokens"]
    return Outcome(tokens, f"{tokens:,} tokens seen", ledger=ledger)


def scored(work: Work) -> Outcome:
    """Score the training windows: text statistic, the proxy's loss and uncertainty, and which counts."""
    recipe = work.recipe
    windows = read_parts(work.source.parts, "train")
    tokenizer_path = work.inputs["tokenizer"].path / "tokenizer.json"
    proxy_path = work.inputs["proxy"].path if recipe.needs_proxy else None
    dataset = map_tables(
        windows.repartition(target_num_rows_per_block=_BLOCK_ROWS),
        _Score,
        TASK_CPUS,
        fn_constructor_args=(recipe, tokenizer_path, proxy_path, _token_counts(windows, recipe)),
        compute=actors(work.cpus, work.source.splits["train"], _BLOCK_ROWS),
        batch_size=_SCORE_BATCH,
    )
    schema = windows_schema(recipe.window)
    for column in work.stage.provides[len(schema) :]:
        schema = schema.append(score_field(column, recipe.window))
    rows = write_parts(dataset, work.directory, schema, ["window_id"])
    ledger = Ledger()
    if proxy_path:
        flops = rows * forward_flops(load_model(proxy_path), recipe.window)
        ledger.charge("scoring", flops=flops, tokens=rows * recipe.window)
    return Outcome(rows, f"{rows:,} windows", ledger=ledger)


def _token_counts(dataset: Dataset, recipe: Recipe) -> np.ndarray | None:
    """How often each token occurs in the training windows, where a score needs it: (V,)."""
    if "rarity" not in chosen_scores(recipe).values():
        return None
    vocab_size = vocabulary_size(recipe)
    counts = np.zeros(vocab_size, dtype=np.int64)
    counted = map_tables(dataset, _CountTokens(vocab_size))
    batches: Iterable[pa.Table] = counted.iter_batches(batch_size=None, batch_format="pyarrow")
    for batch in batches:
        for row in batch["counts"].to_pylist():
            counts += np.asarray(row)
    return counts


class _CountTokens:
    """Windows to one row: the occurrences of every token."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def __call__(self, table: pa.Table) -> pa.Table:
        return pa.table(
            {"counts": [np.bincount(tokens_array(table)[:, 1:].ravel(), minlength=self.vocab_size)]}
        )


class _Score:
    """An actor that adds every score to its windows, and copies the ones asked for to their final columns."""

    def __init__(
        self, recipe: Recipe, tokenizer_path: Path, proxy_path: Path | None, counts: np.ndarray | None
    ) -> None:
        torch.set_num_threads(1)
        self.recipe, self.counts = recipe, counts
        self.tokenizer = load_tokenizer(tokenizer_path)
        self.proxy = load_model(proxy_path) if proxy_path else None
        self.measures = sorted(MEASURES.keys() & set(chosen_scores(recipe).values()))

    def __call__(self, table: pa.Table) -> pa.Table:
        scores = self._scores(tokens_array(table), table["window_id"].to_pylist())
        for column, name in chosen_scores(self.recipe).items():
            scores[column] = scores[name]
        scores.pop("token_loss", None)
        for name, values in scores.items():
            table = table.append_column(name, score_array(values))
        return table

    def _scores(self, tokens_WN1: np.ndarray, window_ids: list[int]) -> dict[str, np.ndarray]:
        texts = self.tokenizer.decode_batch(
            [row[1:] for row in tokens_WN1.tolist()], skip_special_tokens=True
        )
        scores = {"compression": compression_ratio(texts)}
        if self.counts is not None:
            scores["rarity"] = rarity(tokens_WN1[:, 1:], self.counts)
        if self.recipe.selection and self.recipe.selection.kind == "random":
            rngs = (row_rng(self.recipe.seed, "selection", window_id) for window_id in window_ids)
            scores["random"] = np.array([rng.random() for rng in rngs])
        if self.proxy is not None:
            each_token = "reference_loss" in chosen_scores(self.recipe)
            scores |= score_windows(self.proxy, tokens_WN1, self.measures, each_token)
        return scores
