"""How long a training step takes, arm against arm: on a shared machine only turns within one run compare."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping

from torch import nn

from bkray.config import Recipe
from bkray.curriculum import CurriculumSampler
from bkray.training.batches import WindowData
from bkray.training.cost.ledger import Ledger
from bkray.training.cost.telemetry import finish
from bkray.training.loop import TrainingRun

_WARM_UP = 3  # steps of every arm that are not counted: they compile and allocate


def interleaved_step_seconds(
    arms: Mapping[str, tuple[nn.Module, Recipe]],
    data: Mapping[str, WindowData],
    sampler: CurriculumSampler,
    rounds: int,
) -> dict[str, list[float]]:
    """Seconds of `rounds` optimizer steps of every arm; the arms take turns.

    All draw the positions that `sampler` gives, each from its own data.
    """
    runs = {
        name: TrainingRun(model, data[name], copy.deepcopy(sampler), recipe, None, Ledger(), None)
        for name, (model, recipe) in arms.items()
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(_WARM_UP + rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            run.train_step()
            finish(run.device)
            if turn >= _WARM_UP:
                times[name].append(time.perf_counter() - began)
    return times
