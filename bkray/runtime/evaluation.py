"""The evaluation stage: the trained model on the test split, window by window, beside n-gram baselines."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from torch.utils.flop_counter import FlopCounterMode

from bkray.config import Recipe
from bkray.corpus import load_tokenizer
from bkray.corpus.windows import read_columns, tokens_array
from bkray.evaluation import HeldOut, NGramBaseline, window_nats
from bkray.model import generate_each
from bkray.runtime.artifacts import Artifact
from bkray.runtime.cluster import TASK_CPUS
from bkray.runtime.one_core import work_on_one_core
from bkray.runtime.stages import actors, in_worker, map_tables, read_parts, windows_a_block, write_parts
from bkray.runtime.work import Outcome, Work
from bkray.training import Ledger, load_model
from bkray.training.cost.flops import forward_flops

_SPLIT = "test"
_BATCH = 32
_BASELINE_TOKENS = 10_000_000  # training tokens that the n-gram baselines count at most


def evaluation(work: Work) -> Outcome:
    """Nats of every test window; held-out bits per byte of the model and of the baselines; samples.

    Of a model that started from another of the same vocabulary also the bits per byte of that other.
    """
    windows, exported = work.inputs["windows"], work.inputs["model"].path
    tokenizer = work.inputs["tokenizer"].path / "tokenizer.json"
    baselines = _fit_baselines.remote(windows.parts, tokenizer, _SPLIT)
    samples = in_worker(_samples, exported, tokenizer, work.recipe)
    models = {"nats": exported}
    start = work.plan.start
    if start and work.recipe.training.start_vocabulary == "same":
        models["start_nats"] = start
    ledger = Ledger()
    held_out, *before = evaluate(work, windows, models, ledger).values()
    written, flops, tokens = ray.get(samples)
    if written:
        ledger.charge("samples", flops=flops, tokens=tokens)
    details: dict[str, Any] = {
        "held_out": held_out.as_dict(_SPLIT),
        "baselines": ray.get(baselines),
        "samples": written,
    }
    if before:
        details["start"] = before[0].as_dict(_SPLIT)
    rows = held_out.windows
    summary = f"{held_out.bits_per_byte:.4f} bits per byte on {rows:,} {_SPLIT} windows"
    return Outcome(rows, summary, ledger=ledger, details=details)


def forgetting(work: Work) -> Outcome:
    """Held-out bits per byte on the pool, before training and after it."""
    pool, start = work.plan.pool, work.plan.start
    assert pool
    assert start
    ledger, models = Ledger(), {"before": start, "after": work.inputs["model"].path}
    found = evaluate(work, pool.windows, models, ledger)
    before, after = (found[when].bits_per_byte for when in ("before", "after"))
    summary = f"held-out text of the pool: before {before:.4f}, after {after:.4f} bits per byte"
    details = {when: held_out.as_dict(_SPLIT) for when, held_out in found.items()}
    return Outcome(found["after"].windows, summary, ledger=ledger, details=details)


def evaluate(work: Work, windows: Artifact, models: Mapping[str, Path], ledger: Ledger) -> dict[str, HeldOut]:
    """What the exported models lose on the test split, charged to `ledger`; see `held_out_windows`."""
    window = work.recipe.window
    found, flops = held_out_windows(windows, models, work.directory, _SPLIT, window, work.cpus)
    for held_out, each in zip(found.values(), flops, strict=True):
        ledger.charge("evaluation", flops=held_out.windows * each, tokens=held_out.windows * window)
    return found


def _flops(exported: Path, window: int) -> float:
    """Of a pass of an exported model over one window."""
    return forward_flops(load_model(exported), window)


def held_out_windows(
    windows: Artifact, models: Mapping[str, Path], directory: Path, split: str, window: int, cpus: int
) -> tuple[dict[str, HeldOut], list[float]]:
    """What exported models lose on a split, and the FLOPs that each takes a window.

    `models` maps the column of parts in `directory` that gets a model's nats of every window, summed over its
    targets, to the model. One pool of actors holds them all.
    """
    flops = ray.get([in_worker(_flops, exported, window) for exported in models.values()])
    block = windows_a_block(sum(flops))
    dataset = map_tables(
        read_parts(windows.parts, split).repartition(target_num_rows_per_block=block),
        _WindowNats,
        TASK_CPUS,
        fn_constructor_args=(dict(models),),
        compute=actors(cpus, windows.splits[split], block),
        batch_size=min(_BATCH, block),
    )
    columns = [("window_id", pa.int64()), *((column, pa.float64()) for column in models)]
    columns.append(("target_bytes", pa.int32()))
    schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns])
    rows = write_parts(dataset, directory, schema, ["window_id"])
    table = read_columns(sorted(directory.glob("part-*")), [*models, "target_bytes"])
    target_bytes = sum(table["target_bytes"].to_pylist())
    found = {
        column: HeldOut(math.fsum(table[column].to_pylist()), rows * window, target_bytes, rows)
        for column in models
    }
    return found, flops


class _WindowNats:
    """An actor that holds models and adds their losses on each window."""

    def __init__(self, exported: dict[str, Path]) -> None:
        work_on_one_core()
        self.models = {column: load_model(folder) for column, folder in exported.items()}

    def __call__(self, table: pa.Table) -> pa.Table:
        # Window by window: a window's loss must not depend, in its last bits, on its neighbours in the batch.
        tokens_WN1 = torch.from_numpy(tokens_array(table)).long()
        scored = table.select(["window_id", "target_bytes"])
        for column, model in self.models.items():
            nats = [window_nats(model, window[None]).item() for window in tokens_WN1]
            scored = scored.append_column(column, pa.array(nats, pa.float64()))
        return scored


@ray.remote(num_cpus=TASK_CPUS)
def _fit_baselines(parts: list[Path], tokenizer: Path, split: str) -> dict[str, Any]:
    """Held-out bits per byte of a unigram and a 3-gram model of the training split's original windows."""
    started = time.perf_counter()
    vocab_size = load_tokenizer(tokenizer).get_vocab_size()
    counted: list[np.ndarray] = []
    for part in parts:
        table = read_columns([part], ["tokens", "augmentation"], "train")
        counted.append(tokens_array(table.filter(table["augmentation"].is_null())))
        if sum(map(np.size, counted)) >= _BASELINE_TOKENS:
            break
    train_WN1 = np.concatenate(counted)
    held_out = read_columns(parts, ["tokens", "target_bytes"], split)
    tokens_WN1 = tokens_array(held_out)
    held_out_bytes = sum(held_out["target_bytes"].to_pylist())
    result: dict[str, Any] = {"tokens": int(train_WN1[:, 1:].size)}
    for name, order in (("unigram", 1), ("trigram", 3)):
        nats = NGramBaseline.fit(train_WN1, vocab_size, order).nats(tokens_WN1)
        result[name] = nats / held_out_bytes / math.log(2.0)
    return {**result, "seconds": time.perf_counter() - started}


def _samples(exported: Path, tokenizer: Path, recipe: Recipe) -> tuple[list[tuple[str, str]], float, int]:
    """(Prompt, what the model writes after it) of every prompt; its FLOPs; the tokens read and written."""
    settings = recipe.samples
    if settings is None:
        return [], 0.0, 0
    network, bpe = load_model(exported), load_tokenizer(tokenizer)
    with FlopCounterMode(display=False) as counter:
        made = [
            write(network, bpe, prompt, settings.tokens, settings.temperature, recipe.seed, recipe.window)
            for prompt in settings.prompts
        ]
    tokens = sum(written.prompt_tokens + written.tokens for written in made)
    texts = [(prompt, written.text) for prompt, written in zip(settings.prompts, made, strict=True)]
    return texts, float(counter.get_total_flops()), tokens


@dataclass(frozen=True)
class Written:
    """A generated text, and how fast it came."""

    text: str
    prompt_tokens: int
    tokens: int
    prompt_seconds: float
    """Until the first token: reading the prompt."""
    seconds: float
    """For the tokens after the first."""

    @property
    def speed(self) -> str:
        """One line for people; the first token belongs to the prompt, which it had to wait for."""
        read = f"{self.prompt_tokens} tokens of prompt read in {self.prompt_seconds:.2f} s"
        if self.tokens < 2:
            return read
        return f"{self.tokens} tokens, {(self.tokens - 1) / self.seconds:.0f} tokens a second ({read})"


def write(
    network: torch.nn.Module, bpe: Any, prompt: str, tokens: int, temperature: float, seed: int, window: int
) -> Written:
    """What the model writes after `prompt`: up to `tokens` tokens, ending early at the end of a document.

    A model without `step`, which may have positions for no more, reads the last `window` tokens.
    """
    ids = [0, *bpe.encode(prompt).ids]
    made, times = [], [time.perf_counter()]
    for token in generate_each(
        network, ids, tokens, temperature=temperature, seed=seed, stop_id=0, context=window
    ):
        made.append(token)
        times.append(time.perf_counter())
    return Written(bpe.decode(made), len(ids), len(made), times[1] - times[0], times[-1] - times[1])
