"""The stage that asks the teachers: their predictions of every training window, once, as columns.

    training_set ─► actors that hold all teachers, some windows a pass ─► soft_ids, soft_log_probs
                                                                              │
                    training reads the rows of a batch from memory-mapped files ◄┘

A target takes 4 bytes for each of the k tokens (6 where an id needs 4), whatever the vocabulary; windows lie
in the order of the training set.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from bkray.config import UserError
from bkray.corpus import load_tokenizer
from bkray.corpus.mapped import MappedWindows, map_windows
from bkray.corpus.schema import soft_targets_fields
from bkray.corpus.windows import tokens_array
from bkray.difficulty import windows_a_pass
from bkray.runtime.cluster import TASK_CPUS
from bkray.runtime.one_core import work_on_one_core
from bkray.runtime.precision import device_here, dtype_everywhere, said
from bkray.runtime.stages import (
    ROWS_PER_PART,
    actors,
    in_worker,
    map_tables,
    read_parts,
    windows_a_block,
    write_parts,
)
from bkray.runtime.work import Outcome, Work
from bkray.training import Ledger, load_model
from bkray.training.cost.flops import forward_flops
from bkray.training.techniques import distillation

_PART_VALUES = 1 << 24  # numbers of a column in one file, which a task holds: 64 to 100 MB with the ids


def soft_targets(work: Work) -> Outcome:
    """The most probable tokens of the teachers' mean for every target of the training set; charged."""
    recipe, settings = work.recipe, work.recipe.training.distillation
    assert settings
    folders = [Path(folder).absolute() for folder in settings.teachers]
    vocabulary = load_tokenizer(work.inputs["tokenizer"].path / "tokenizer.json").get_vocab_size()
    asked = [in_worker(_cost, folder, vocabulary, recipe.window) for folder in folders]
    costs, passes = zip(*ray.get(asked), strict=True)
    flops, together = sum(costs), max(passes)
    fields = soft_targets_fields(recipe.window, settings.top_k, vocabulary)
    keys = list(work.stage.provides[: -len(fields)])  # those that the training set is sorted by
    there = pq.read_schema(work.source.parts[0])
    schema = pa.schema([*(there.field(name) for name in keys), *fields])
    gpus = int(ray.cluster_resources().get("GPU", 0))
    dtype = dtype_everywhere(gpus)
    read = read_parts(work.source.parts).select_columns([*keys, "tokens"])
    block = windows_a_block(flops, gpus, together)
    dataset = map_tables(
        read.repartition(target_num_rows_per_block=block),
        _Ask,
        TASK_CPUS,
        fn_constructor_args=(folders, settings.top_k, schema, dtype),
        compute=actors(gpus or work.cpus, work.source.rows, block),
        batch_size=together,
        **({"num_gpus": 1} if gpus else {}),
    )
    rows_per_part = max(1, min(ROWS_PER_PART, _PART_VALUES // (recipe.window * settings.top_k)))
    rows = write_parts(dataset, work.directory, schema, keys, rows_per_part)
    ledger = Ledger()
    ledger.charge("teacher", flops=rows * flops, tokens=rows * recipe.window * len(folders))
    summary = f"{rows:,} windows, {settings.top_k} tokens a target"
    return Outcome(rows, summary, ledger=ledger, details=said(dtype))


def map_soft_targets(parts: list[Path]) -> tuple[MappedWindows, MappedWindows] | None:
    """Ids and log-probabilities (W, N x k) of the artifact with these parts, None where there are none."""
    return (map_windows(parts, "soft_ids"), map_windows(parts, "soft_log_probs")) if parts else None


@torch.no_grad()
def _cost(folder: Path, vocabulary: int, window: int) -> tuple[float, int]:
    """FLOPs of a teacher's pass over one window, and windows a pass.

    Raises UserError where it predicts other tokens than there are.
    """
    teacher = load_model(folder)
    width = teacher(torch.zeros(1, 1, dtype=torch.int64)).shape[-1]
    if width != vocabulary:
        raise UserError(
            f"training.distillation.teachers: {folder} predicts {width} tokens, its tokenizer has "
            f"{vocabulary}: name a model with as many"
        )
    return forward_flops(teacher, window), windows_a_pass(teacher, window)


class _Ask:
    """An actor that holds the teachers."""

    def __init__(self, folders: list[Path], k: int, schema: pa.Schema, dtype: torch.dtype) -> None:
        work_on_one_core()
        self.folders, self.k, self.schema, self.dtype = folders, k, schema, dtype
        self.teachers = [load_model(folder).to(device_here()) for folder in folders]

    def __call__(self, table: pa.Table) -> pa.Table:
        ids, nats = distillation.soft_targets(self.teachers, tokens_array(table), self.k, self.dtype)
        if not np.isfinite(nats).all():
            raise UserError(
                f"training.distillation.teachers: the predictions of {', '.join(map(str, self.folders))} are "
                "not all finite: name models that have not diverged"
            )
        table = table.drop_columns(["tokens"])
        for name, values in (("soft_ids", ids), ("soft_log_probs", nats)):
            kind = self.schema.field(name).type
            numbers = pa.array(values.astype(kind.value_type.to_pandas_dtype()).reshape(-1))
            table = table.append_column(name, pa.FixedSizeListArray.from_arrays(numbers, kind.list_size))
        return table
