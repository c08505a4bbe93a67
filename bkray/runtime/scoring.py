"""The stages that need a model to prepare data: the proxy, and the scores of every training window.

windows ─► proxy (one small training run) ─► scored: actors that hold the proxy, some windows a pass
                                         └─► held_out_scores: one task, some test windows
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from bkray.config import Recipe, UserError
from bkray.corpus import load_tokenizer
from bkray.corpus.schema import row_rng, score_array, score_field, windows_schema
from bkray.corpus.tokenizer import SEPARATOR
from bkray.corpus.windows import first_rows, tokens_array
from bkray.difficulty import (
    compression_ratio,
    perplexity,
    rarity,
    score_windows,
    sentence_length,
    windows_a_pass,
)
from bkray.runtime.cluster import TASK_CPUS
from bkray.runtime.one_core import work_on_one_core
from bkray.runtime.plan import chosen_scores, scored_columns
from bkray.runtime.precision import device_here, dtype_everywhere, said
from bkray.runtime.proxy import train_proxy
from bkray.runtime.selection import kept_of
from bkray.runtime.stages import actors, in_worker, map_tables, read_parts, windows_a_block, write_parts
from bkray.runtime.work import Outcome, Work
from bkray.selection import MEASURES, dropout_masks, histogram, quantile
from bkray.selection.threshold import BINS
from bkray.training import Ledger, load_model
from bkray.training.cost.flops import forward_flops, head_flops
from bkray.training.state.start import vocabulary_size

_SKILL_WINDOWS = 1024  # test windows scored at most: a rank correlation is then known to within about 0.03


def proxy(work: Work) -> Outcome:
    """Train the small scoring model in one process; its cost is charged."""
    _check_keep(work)
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
    """Score the training windows: what the recipe asks for, and which counts for what."""
    recipe = work.recipe
    _check_keep(work)
    gpus = int(ray.cluster_resources().get("GPU", 0)) if recipe.needs_proxy else 0
    scorer = _scorer(work, scored_columns(recipe), gpus)
    widths = in_worker(scorer.widths)
    flops, together = ray.get([in_worker(scorer.flops), in_worker(scorer.windows_a_pass)])
    block = windows_a_block(flops, gpus, together)
    dataset = map_tables(
        read_parts(work.source.parts, "train").repartition(target_num_rows_per_block=block),
        _Score,
        TASK_CPUS,
        fn_constructor_args=(scorer,),
        compute=actors(gpus or work.cpus, work.source.splits["train"], block),
        batch_size=None,
        **({"num_gpus": 1} if gpus else {}),
    )
    schema = windows_schema(recipe.window)
    for column in work.stage.provides[len(schema) :]:
        schema = schema.append(score_field(column, ray.get(widths).get(column)))
    rows = write_parts(dataset, work.directory, schema, ["window_id"])
    ledger = Ledger()
    if scorer.model:
        ledger.charge("scoring", flops=rows * flops, tokens=rows * recipe.window)
    quantiles = _quantiles(work.directory, [f.name for f in schema if f.type == pa.float32()])
    details = {"quantiles": quantiles, **scorer.said}
    return Outcome(rows, f"{rows:,} windows", ledger=ledger, details=details)


def _check_keep(work: Work) -> None:
    """Refuse a selection of all windows before anything is spent on scores."""
    if selection := work.recipe.selection:
        kept_of(selection, work.inputs["windows"].splits["train"])


def held_out_scores(work: Work) -> Outcome:
    """Score test windows as the training windows: how well a score orders them is its skill.

    Every score that takes no pass of its own is computed, asked for or not. Nothing is chosen by them.
    """
    recipe = work.recipe
    names = ["compression", "rarity", "sentence_length"]
    names += ["loss", *MEASURES] if recipe.needs_proxy else []
    names += [name for name in chosen_scores(recipe).values() if name not in ("token_loss", "perplexity")]
    scorer = _scorer(work, tuple(dict.fromkeys(names)), gpus=0)
    rows, flops = ray.get(
        [_score_held_out.remote(scorer, work.source.parts, work.directory), in_worker(scorer.flops)]
    )
    ledger = Ledger()
    if scorer.model:
        ledger.charge("skill", flops=rows * flops, tokens=rows * recipe.window)
    return Outcome(rows, f"{rows:,} test windows", ledger=ledger, details=scorer.said)


@ray.remote(num_cpus=1)
def _score_held_out(scorer: Scorer, parts: list[Path], directory: Path) -> int:
    """Windows lie in the order of their ids, which are hashes: the first ones are a random sample."""
    windows = first_rows(parts, ["window_id", "tokens"], "test", _SKILL_WINDOWS)
    scores = _Score(scorer)(windows).select(["window_id", *scorer.names])
    pq.write_table(scores, directory / "part-00000.parquet")
    return windows.num_rows


def _quantiles(directory: Path, columns: list[str]) -> dict[str, dict[str, float]]:
    """The spread of every score, to within 0.4 %: a part file at a time, no column is held as a whole."""
    counts = {column: np.zeros(BINS, dtype=np.int64) for column in columns}
    for part in sorted(directory.glob("part-*")):
        table = pq.read_table(part, columns=columns)
        for column in columns:
            counts[column] += histogram(table[column].to_numpy())
    return {
        column: {f"{share:g}": quantile(counts[column], share) for share in (0.05, 0.5, 0.95)}
        for column in columns
    }


def _token_counts(parts: list[Path], recipe: Recipe) -> np.ndarray:
    """How often each token occurs in the training windows: (V,)."""
    vocab_size = vocabulary_size(recipe)
    counts = np.zeros(vocab_size, dtype=np.int64)
    counted = map_tables(read_parts(parts, "train"), _CountTokens(vocab_size))
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


@dataclass(frozen=True)
class Scorer:
    """Which scores, and what they are computed with; it is read where it is used."""

    recipe: Recipe
    names: tuple[str, ...]
    tokenizer: Path
    model: Path | None
    """The scoring model: the proxy, or the one that the recipe names."""
    reference: Path | None
    counts: np.ndarray | None
    """Occurrences of every token (V,), for rarity."""
    dtype: torch.dtype = torch.float32
    """Of the models' matrix products: the same wherever a window is scored."""

    @property
    def said(self) -> dict[str, str]:
        """What the manifest says of it."""
        return said(self.dtype) if self.model else {}

    def widths(self) -> dict[str, int]:
        """Of the columns that hold several numbers a window."""
        widths = {"reference_loss": self.recipe.window}
        if "embedding" in self.names and self.model:
            widths["embedding"] = _width(load_model(self.model))
        return widths

    def windows_a_pass(self) -> int:
        """Of the model that takes more of them."""
        paths = [path for path in (self.model, self.reference) if path]
        return max((windows_a_pass(load_model(path), self.recipe.window) for path in paths), default=1)

    def flops(self) -> float:
        """Of the scores of one window."""
        if self.model is None:
            return 0.0
        network, window = load_model(self.model), self.recipe.window
        total = forward_flops(network, window)
        if "variation_ratio" in self.names and self.recipe.selection:
            total += self.recipe.selection.passes * head_flops(network, window)
        return total + (forward_flops(load_model(self.reference), window) if self.reference else 0.0)


def _masks(scorer: Scorer, model: torch.nn.Module | None) -> torch.Tensor | None:
    """Of the copies of variation_ratio, where it is asked for."""
    selection = scorer.recipe.selection
    if "variation_ratio" not in scorer.names or selection is None or model is None:
        return None
    return dropout_masks(selection.passes, _width(model), selection.dropout, scorer.recipe.seed)


def _width(model: torch.nn.Module) -> int:
    device = next(model.parameters()).device
    with torch.no_grad():
        return int(model.hidden(torch.zeros(1, 1, dtype=torch.int64, device=device)).shape[-1])  # type: ignore[operator]


def _scorer(work: Work, names: tuple[str, ...], gpus: int) -> Scorer:
    recipe = work.recipe
    model: Path | None = None
    if recipe.needs_proxy:
        given = recipe.proxy and recipe.proxy.folder
        model = Path(given).absolute() if given else work.inputs["proxy"].path
    reference = recipe.difficulty and recipe.difficulty.reference
    return Scorer(
        recipe,
        names,
        work.inputs["tokenizer"].path / "tokenizer.json",
        model,
        Path(reference).absolute() if reference and "reducible" in names else None,
        _token_counts(work.source.parts, recipe) if "rarity" in names else None,
        dtype_everywhere(gpus) if model else torch.float32,
    )


class _Score:
    """An actor that adds every score to its windows, and copies the ones asked for to their final columns."""

    def __init__(self, scorer: Scorer) -> None:
        work_on_one_core()
        self.scorer = scorer
        self.tokenizer = load_tokenizer(scorer.tokenizer)
        paths = (scorer.model, scorer.reference)
        self.model, self.reference = (load_model(path).to(device_here()) if path else None for path in paths)
        self.masks = _masks(scorer, self.model)

    def __call__(self, table: pa.Table) -> pa.Table:
        tokens_WN1 = tokens_array(table)
        scores = self._of_texts(tokens_WN1) | self._of_models(tokens_WN1)
        if "random" in self.scorer.names:
            ids, seed = table["window_id"].to_pylist(), self.scorer.recipe.seed
            scores["random"] = np.array([row_rng(seed, "selection", row).random() for row in ids])
        columns = {name: scores[name] for name in self.scorer.names if name != "token_loss"}
        for column, name in chosen_scores(self.scorer.recipe).items():
            if name in scores:
                columns[column] = scores[name]
        for name, values in columns.items():
            table = table.append_column(name, score_array(values))
        return table

    def _of_texts(self, tokens_WN1: np.ndarray) -> dict[str, np.ndarray]:
        names = self.scorer.names
        texts = self.tokenizer.decode_batch(tokens_WN1[:, 1:].tolist(), skip_special_tokens=True)
        scores = {"compression": compression_ratio(texts)}
        if "sentence_length" in names:
            with_ends = self.tokenizer.decode_batch(tokens_WN1[:, 1:].tolist(), skip_special_tokens=False)
            scores["sentence_length"] = sentence_length(
                [text.replace(SEPARATOR, "\n\n") for text in with_ends]
            )
        if self.scorer.counts is not None:
            scores["rarity"] = rarity(tokens_WN1[:, 1:], self.scorer.counts)
        return scores

    def _of_models(self, tokens_WN1: np.ndarray) -> dict[str, np.ndarray]:
        if self.model is None:
            return {}
        names = self.scorer.names
        scores = score_windows(
            self.model,
            tokens_WN1,
            [name for name in MEASURES if name in names],
            "token_loss" in names,
            embedding="embedding" in names,
            masks_TD=self.masks,
            dtype=self.scorer.dtype,
        )
        if "perplexity" in names:
            scores["perplexity"] = perplexity(scores["loss"])
        if "embedding" in names:
            with np.errstate(over="ignore"):  # what its column does not hold is named
                scores["embedding"] = scores["embedding"].astype(np.float16)
        _check_finite(scores, self.scorer.model)
        if self.reference is not None:
            reference = score_windows(self.reference, tokens_WN1, dtype=self.scorer.dtype)
            _check_finite(reference, self.scorer.reference)
            scores["reducible"] = scores["loss"] - reference["loss"]
        return scores


def _check_finite(scores: dict[str, np.ndarray], model: Path | None) -> None:
    """Raise UserError by the first of a model's scores that some windows have no finite number of."""
    for name, values in scores.items():
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            raise UserError(
                f"{model}: {(~finite).sum()} of {len(finite)} windows have no finite {name}: score with a "
                "model that has not diverged (proxy.folder, difficulty.reference; for the proxy that is "
                "trained here a lower proxy.lr)"
            )
