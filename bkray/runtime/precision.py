"""The precision of all windows that a stage scores or asks teachers about, wherever its workers run.

Actors on different machines, or those that start again on another one, would otherwise each choose theirs.
"""

from __future__ import annotations

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bkray.difficulty import scoring_dtype


def device_here() -> torch.device:
    """Where a worker computes."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype_everywhere(gpus: int) -> torch.dtype:
    """bfloat16 where all machines that may compute have it: those with GPUs where there are any (`gpus`)."""
    kind, asked = ("GPU", 1) if gpus else ("CPU", 0)
    machines = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get(kind)]
    return common_dtype(
        ray.get(
            [
                _dtype_here.options(
                    num_gpus=asked, scheduling_strategy=NodeAffinitySchedulingStrategy(machine, soft=True)
                ).remote()
                for machine in machines
            ]
        )
    )


@ray.remote(num_cpus=0)
def _dtype_here() -> torch.dtype:
    return scoring_dtype(device_here())


def common_dtype(dtypes: list[torch.dtype]) -> torch.dtype:
    """bfloat16 where nothing else is among them."""
    return torch.bfloat16 if set(dtypes) == {torch.bfloat16} else torch.float32


def said(dtype: torch.dtype) -> dict[str, str]:
    """What the manifest of the stage says of it."""
    return {"dtype": str(dtype).removeprefix("torch.")}
