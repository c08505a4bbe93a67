"""A cache of gradients: a step whose batch is like an earlier one takes that one's gradient again.

    batch ─► how often it has each token ─► mean embedding ─► nearest entry by cosine, rank 0 decides
                      miss ─► forward, backward ─► the gradient is used and kept
                      hit  ─► the kept gradient is used; some hits compute the true one too: an audit
                                                                bad audits, rising loss ─► off for good

The batch is the global one, its gradient the average over the ranks before clipping: all ranks hold the same
entries. A hit has no pass, forward or backward: its loss is not known, nothing is learnt of its windows.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bkray.config import UserError
from bkray.config.gradient_cache import AdaptiveThreshold, ControlVariate, EveryKSteps, GradientReuse
from bkray.training.cost.ledger import Cost, Ledger
from bkray.training.parallel.world import World

logger = logging.getLogger(__name__)

_PURPOSE = 17  # of the random draws; 0 and 1 are the sampler's
_RECENT = 10  # audits that are judged together
_NORM_RATIOS = (1 / 3, 3.0)  # cached, before `scale`, over true; beyond them the cache is switched off
_SMOOTHING = 0.9  # weight of the past in the loss that is watched, a step: rare passes count for more


def nearest(keys_ED: Tensor, key_D: Tensor) -> tuple[int, float]:
    """The row with the largest cosine to `key_D`, and that cosine; exact, the whole matrix."""
    cosines_E = F.normalize(keys_ED, dim=1) @ F.normalize(key_D, dim=0)
    index = int(cosines_E.argmax())
    return index, float(cosines_E[index])


def agreement(cached_P: Tensor, true_P: Tensor) -> tuple[float, float]:
    """Cosine of two gradients, and the first one's norm over the second's."""
    cached, true = float(cached_P.norm()), max(float(true_P.norm()), 1e-30)
    return float(cached_P @ true_P) / max(cached * true, 1e-30), cached / true


def corrected(cached_P: Tensor, true_P: Tensor, probability: float) -> Tensor:
    """What, taken with this probability and else `cached_P`, is `true_P` in the mean (a control variate)."""
    return cached_P + (true_P - cached_P) / probability


def adapted(threshold: float, hit: bool, settings: AdaptiveThreshold) -> float:
    """The threshold after a step that hit or missed, within its bounds."""
    gap = (1 - threshold) * math.exp(settings.gain * (settings.hit_rate - hit))
    return min(settings.high, max(settings.low, 1 - gap))


@dataclass(frozen=True)
class Entry:
    """A gradient, the batch that it is of, and the step that it was computed at."""

    counts_V: Tensor
    """How often the batch has each token; without elements where batches are not compared."""
    gradient_P: Tensor
    """Of all parameters, one after the other."""
    step: int


@dataclass(frozen=True)
class Choice:
    """How one step comes by its gradient."""

    step: int
    counts_V: Tensor
    entry: Entry | None
    """The hit."""
    compute: bool
    """Whether the true gradient is computed."""


class GradientCache:
    """Chooses before a step (`look_up`) and leaves its gradient in the parameters (`settle`).

    Args:
        model: whose gradients are cached; its largest `nn.Embedding` is what batches are compared by.
        settings: the recipe's `training.gradient_cache`.
        seed: with the step, the only source of randomness.
        world: all of its ranks call both methods alike.

    Raises UserError where the model has no embedding, or `max_bytes` does not hold one gradient.
    """

    def __init__(
        self, model: nn.Module, settings: GradientReuse, *, seed: int = 0, world: World | None = None
    ) -> None:
        self.settings, self.seed, self.world = settings, seed, world or World()
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.size = sum(parameter.numel() for parameter in self.parameters)
        self.table: Tensor | None = None  # kind every: all batches are alike
        self.threshold, self.max_age, self.capacity = math.nan, 0, 1
        if isinstance(settings, EveryKSteps):
            self.max_age = settings.steps - 1
        else:
            self.table = _token_embedding(model)
            self.threshold, self.max_age = settings.threshold, settings.max_age
            self.capacity = _capacity(settings.max_bytes, self.size, len(self.table))
        self.entries: list[Entry] = []
        self.off = ""
        """When and why the cache was switched off; empty while it is on."""
        self.hits = 0
        self.audits: list[tuple[float, float]] = []
        """Of the last hits that were computed: cosine and norm ratio, cached to true."""
        self.smoothed, self.lowest, self.watched = math.nan, math.inf, 0
        self._line = {"steps": 0, "hits": 0, "saved": 0}
        self._spent = Cost()

    @torch.no_grad()
    def look_up(self, step: int, tokens_BN1: Tensor) -> Choice:
        """How `step` comes by the gradient of its batch, of which these windows are this rank's.

        Where the true one is computed, the caller leaves it in the parameters before `settle`.
        """
        if self.off:
            return Choice(step, torch.empty(0), None, True)
        started = time.perf_counter()
        counts_V = self._counts(tokens_BN1[:, :-1])
        entry = self._find(step, counts_V)
        compute = entry is None or self.hits < self.settings.first_audits or self._draws(step)
        self._count(hit=entry is not None, saved=not compute)
        self._spent.seconds += time.perf_counter() - started
        return Choice(step, counts_V, entry, compute)

    @torch.no_grad()
    def settle(self, choice: Choice, loss: Tensor | None) -> None:
        """Leave the gradient of the step in the parameters; keep a computed one, and judge by it.

        `loss` is this rank's mean loss where there was a pass.
        """
        if self.off:
            return
        started = time.perf_counter()
        true_P = self._computed() if choice.compute else None
        if true_P is not None and not bool(true_P.isfinite().all()):
            return  # the loop refuses the step
        if choice.entry:
            self._spent.flops += self.size * self.world.size
            self._reuse(choice.step, choice.entry.gradient_P * self.settings.scale, true_P)
        if true_P is not None and not self.off:
            self._keep(Entry(choice.counts_V, true_P, choice.step), choice.entry)
        if loss is not None and not self.off:
            self._watch(choice.step, loss)
        self._spent.seconds += time.perf_counter() - started

    def charge(self, ledger: Ledger) -> float:
        """Charge what the step's comparing and combining took all ranks; returns its seconds."""
        spent, self._spent = self._spent, Cost()
        ledger.charge("gradient_cache", **asdict(spent))
        return spent.seconds

    def measurements(self) -> dict[str, float]:
        """For the log: shares of the steps since the last call, and what the last audits found."""
        line, self._line = self._line, dict.fromkeys(self._line, 0)
        if not line["steps"]:
            return {}
        figures = {
            "cache_hit_rate": line["hits"] / line["steps"],
            "cache_saved": line["saved"] / line["steps"],
        }
        if self.audits:
            figures["cache_cosine"], figures["cache_norm_ratio"] = self._verdict()
        if self.table is not None:
            figures["cache_threshold"] = self.threshold
        return figures

    def _counts(self, tokens_BN: Tensor) -> Tensor:
        """How often the global batch has each token (V,): whole numbers, equal for any number of ranks."""
        if self.table is None:
            return torch.empty(0)
        return self.world.total(tokens_BN.flatten().bincount(minlength=len(self.table)).float())

    def _find(self, step: int, counts_V: Tensor) -> Entry | None:
        """The entry to use again, as rank 0 decides: ranks that differ would wait for each other for ever."""
        self.entries = [entry for entry in self.entries if step - entry.step <= self.max_age]
        found = -1
        if self.entries and self.world.rank == 0:
            found = self._nearest(counts_V)
        if self.entries and self.table is not None:
            self._spent.flops += 2 * (len(self.entries) + 1) * self.table.numel()
        decision = torch.tensor([found if self.world.rank == 0 else 0], device=self.parameters[0].device)
        found = int(self.world.total(decision))
        return self.entries[found] if found >= 0 else None

    def _nearest(self, counts_V: Tensor) -> int:
        """The position of the entry most like the batch; -1 where the threshold is above that."""
        if self.table is None:
            return 0
        means_ED = torch.stack([entry.counts_V for entry in self.entries]) @ self.table
        index, cosine = nearest(means_ED, counts_V @ self.table)
        return index if cosine >= self.threshold else -1

    def _draws(self, step: int) -> bool:
        """Whether a hit at `step` is computed: by seed and step alone, so that all ranks agree."""
        key = np.array([(self.seed << 8) | _PURPOSE, step], dtype=np.uint64)
        return bool(np.random.Generator(np.random.Philox(key=key)).random() < self.settings.audit)

    def _count(self, *, hit: bool, saved: bool) -> None:
        self.hits += hit
        for name, one in (("steps", True), ("hits", hit), ("saved", saved)):
            self._line[name] += one
        if not isinstance(self.settings, EveryKSteps) and self.settings.adapt:
            self.threshold = adapted(self.threshold, hit, self.settings.adapt)

    def _computed(self) -> Tensor:
        """The gradient in the parameters, copied; zero where a parameter has none."""
        given = [(parameter, parameter.grad) for parameter in self.parameters]
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in given])

    def _reuse(self, step: int, cached_P: Tensor, true_P: Tensor | None) -> None:
        """Leave what a hit takes: its own gradient where that audits the cache, else what the kind says."""
        if true_P is None:
            self._put(cached_P)
            return
        self._spent.flops += 6 * self.size * self.world.size
        cosine, ratio = self._mean(agreement(cached_P, true_P))
        self.audits = [*self.audits, (cosine, ratio)][-_RECENT:]
        if self.hits >= self.settings.first_audits:
            self._judge(step)
        correct = isinstance(self.settings, ControlVariate) and self.hits > self.settings.first_audits
        if correct and not self.off:
            self._spent.flops += 3 * self.size * self.world.size
            self._put(corrected(cached_P, true_P, self.settings.audit))

    def _mean(self, values: Iterable[float]) -> list[float]:
        """Over the ranks, so that all of them judge by the same bits."""
        total = self.world.total(torch.tensor(list(values), device=self.parameters[0].device))
        return [value / self.world.size for value in total.tolist()]

    def _put(self, gradient_P: Tensor) -> None:
        sizes = [parameter.numel() for parameter in self.parameters]
        for parameter, part in zip(self.parameters, gradient_P.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter)

    def _keep(self, made: Entry, replaced: Entry | None) -> None:
        """Keep `made`, in the place of the entry that it hit; the oldest go where there is no room."""
        kept = [entry for entry in self.entries if entry is not replaced]
        self.entries = [*kept, made][-self.capacity :]

    def _verdict(self) -> tuple[float, float]:
        """Mean cosine and mean norm ratio of the last audits."""
        cosines, ratios = zip(*self.audits, strict=True)
        return sum(cosines) / len(cosines), sum(ratios) / len(ratios)

    def _judge(self, step: int) -> None:
        cosine, ratio = self._verdict()
        found = f"the last {len(self.audits)} audits found"
        if cosine < self.settings.least_cosine:
            least = f"below least_cosine {self.settings.least_cosine:g}"
            self._switch_off(step, f"{found} a mean cosine of {cosine:.3f} to the true gradient, {least}")
        elif not _NORM_RATIOS[0] < ratio / self.settings.scale < _NORM_RATIOS[1]:
            self._switch_off(step, f"{found} cached gradients {ratio:.2g} times as long as the true ones")

    def _watch(self, step: int, loss: Tensor) -> None:
        """Take in the loss of a computed step; a rise above the lowest ends the cache once it reuses."""
        mean = self._mean([float(loss)])[0]
        before = mean if math.isnan(self.smoothed) else self.smoothed
        keep = _SMOOTHING ** (step - self.watched)
        self.smoothed = keep * before + (1 - keep) * mean
        self.lowest, self.watched = min(self.lowest, self.smoothed), step
        rise = self.smoothed / self.lowest - 1
        if self.hits > self.settings.first_audits and rise > self.settings.most_rise:
            most = f"most_rise allows {self.settings.most_rise:.1%}"
            self._switch_off(step, f"the smoothed loss rose {rise:.1%} above its lowest, {most}")

    def _switch_off(self, step: int, why: str) -> None:
        self.off = f"the gradient cache is off from step {step} on, after {self.hits} hits: {why}"
        self.entries = []
        if self.world.rank == 0:
            logger.warning("%s; training goes on without it", self.off)

    def state_dict(self) -> dict[str, Any]:
        return {
            "entries": [[entry.counts_V, entry.gradient_P, entry.step] for entry in self.entries],
            "threshold": self.threshold,
            "off": self.off,
            "hits": self.hits,
            "audits": [list(audit) for audit in self.audits],
            "watched": [self.smoothed, self.lowest, self.watched],
            "line": dict(self._line),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.parameters[0].device
        self.entries = [
            Entry(counts.to(device), grad.to(device), step) for counts, grad, step in state["entries"]
        ]
        self.threshold, self.off, self.hits = state["threshold"], state["off"], state["hits"]
        self.audits = [(cosine, ratio) for cosine, ratio in state["audits"]]
        self.smoothed, self.lowest, self.watched = state["watched"]
        self._line = dict(state["line"])


def _token_embedding(model: nn.Module) -> Tensor:
    """The table of the largest embedding, whose rows are the tokens' (V, D)."""
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    if not tables:
        raise UserError(
            f"training.gradient_cache compares batches by the model's token embedding, and "
            f"{type(model).__name__} has no torch.nn.Embedding: use kind every, which compares none"
        )
    return max(tables, key=len)


def _capacity(max_bytes: int, parameters: int, vocabulary: int) -> int:
    """Entries that fit, of a float32 number a parameter and a token of the vocabulary."""
    entry = 4 * (parameters + vocabulary)
    if max_bytes < entry:
        raise UserError(
            f"training.gradient_cache.max_bytes {max_bytes:,} does not hold one gradient: {parameters:,} "
            f"parameters and counts of {vocabulary:,} tokens x 4 bytes are {entry:,}: raise it to a multiple "
            "of that"
        )
    return max_bytes // entry
