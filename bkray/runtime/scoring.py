"""The stages that need a model to prepare data: the proxy, and the scores of every training window.

    windows ─► proxy (one small training run) ─► scored: actors that hold the proxy, one window at a time
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy, Dataset

from bkray.config import Recipe
from bkray.corpus import load_tokenizer
from bkray.corpus.schema import row_rng, windows_schema
from bkray.corpus.windows import tokens_array
from bkray.difficulty import compression_ratio, rarity, score_windows
from bkray.runtime.cluster import TASK_CPUS
from bkray.runtime.plan import chosen_scores
from bkray.runtime.proxy import train_proxy
from bkray.runtime.stages import map_tables, read_parts, write_parts
from bkray.runtime.work import Outcome, Work
from bkray.training import Ledger, load_model
from bkray.training.flops import forward_flops

_BLOCK_ROWS = 512  # windows a task: small enough to share them evenly and to show progress
_SCORE_BATCH = 64  # windows an actor takes at a time; they are scored one by one


def proxy(work: Work) -> Outcome:
    """Train the small scoring model in one process; its cost is charged."""
    ledger = Ledger(ray.get(train_proxy.remote(work.recipe, work.inputs["windows"].parts, work.inputs["tokenizer"].path, work.directory)))
    tokens = ledger.table()["proxy_training"]["tokens"]
    return Outcome(tokens, f"{tokens:,} tokens seen", ledger=ledger)


def scored(work: Work) -> Outcome:
    """Score the training windows: a text statistic, the proxy's loss and uncertainty, and which of them counts."""
    recipe = work.recipe
    dataset = read_parts(work.source.parts, "train").repartition(target_num_rows_per_block=_BLOCK_ROWS)
    tokenizer_path = work.inputs["tokenizer"].path / "tokenizer.json"
    dataset = map_tables(dataset, _TextScore(recipe, tokenizer_path, _token_counts(dataset, recipe)))
    if recipe.needs_proxy:
        dataset = map_tables(
            dataset,
            _ModelScore,
            fn_constructor_args=(recipe, work.inputs["proxy"].path),
            compute=ActorPoolStrategy(size=work.cpus),
            batch_size=_SCORE_BATCH,
            num_cpus=TASK_CPUS,
        )
    dataset = map_tables(dataset, _Choose(chosen_scores(recipe)))
    schema = windows_schema(recipe.window)
    for column in work.stage.provides[len(schema) :]:
        schema = schema.append(pa.field(column, pa.float32(), nullable=False))
    rows = write_parts(dataset, work.directory, schema, ["window_id"])
    ledger = Ledger()
    if recipe.needs_proxy:
        flops = rows * forward_flops(load_model(work.inputs["proxy"].path), recipe.window)
        ledger.charge("scoring", flops=flops, tokens=rows * recipe.window)
    return Outcome(rows, f"{rows:,} windows", ledger=ledger)


def _token_counts(dataset: Dataset, recipe: Recipe) -> np.ndarray | None:
    """How often each token occurs in the training windows, where a score needs it: (V,)."""
    if not recipe.difficulty or recipe.difficulty.kind != "rarity":
        return None
    vocab_size = recipe.tokenizer.vocab_size
    counts = np.zeros(vocab_size, dtype=np.int64)
    for batch in map_tables(dataset, _CountTokens(vocab_size)).iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in batch["counts"].to_pylist():
            counts += np.asarray(row)
    return counts


class _CountTokens:
    """Windows to one row: the occurrences of every token."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def __call__(self, table: pa.Table) -> pa.Table:
        return pa.table({"counts": [np.bincount(tokens_array(table)[:, 1:].ravel(), minlength=self.vocab_size)]})


class _TextScore:
    """Adds the scores that need no model: `compression`, and `rarity` or `random` where they are asked for."""

    def __init__(self, recipe: Recipe, tokenizer_path: Path, counts: np.ndarray | None) -> None:
        self.recipe, self.tokenizer_path, self.counts = recipe, tokenizer_path, counts

    def __call__(self, table: pa.Table) -> pa.Table:
        tokens_WN1 = tokens_array(table)
        bpe = load_tokenizer(self.tokenizer_path)
        texts = bpe.decode_batch([row[1:] for row in tokens_WN1.tolist()], skip_special_tokens=True)
        table = _append(table, "compression", compression_ratio(texts))
        if self.counts is not None:
            table = _append(table, "rarity", rarity(tokens_WN1[:, 1:], self.counts))
        if self.recipe.selection and self.recipe.selection.kind == "random":
            ids = table["window_id"].to_pylist()
            draws = [row_rng(self.recipe.seed, "selection", row).random() for row in ids]
            table = _append(table, "random", np.array(draws))
        return table


class _ModelScore:
    """An actor that holds the proxy and adds its `loss` and the uncertainty measure that is asked for."""

    def __init__(self, recipe: Recipe, model_path: Path) -> None:
        torch.set_num_threads(1)
        self.model = load_model(model_path)
        self.measures = [recipe.selection.kind] if recipe.selection and recipe.selection.needs_proxy else []

    def __call__(self, table: pa.Table) -> pa.Table:
        for name, values in score_windows(self.model, tokens_array(table), self.measures).items():
            table = _append(table, name, values)
        return table


class _Choose:
    """Copies the scores that the recipe asks for to the columns `difficulty` and `uncertainty`."""

    def __init__(self, chosen: dict[str, str]) -> None:
        self.chosen = chosen

    def __call__(self, table: pa.Table) -> pa.Table:
        for column, score in self.chosen.items():
            table = table.append_column(column, table[score])
        return table


def _append(table: pa.Table, name: str, values: np.ndarray) -> pa.Table:
    return table.append_column(name, pa.array(values.astype(np.float32)))
