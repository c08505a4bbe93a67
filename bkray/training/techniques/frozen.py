"""A frozen prefix: the embedding and the first blocks keep their weights; what they give can be kept too.
Gradual unfreezing is a prefix that gets shorter, phase by phase.

    tokens (R, N) ─┬─► kept before ───────────────────┬─► stream (R, N, d), no gradient ─► the rest
                   └─► embedding, blocks, row by row ─┘

A row is kept under a digest of its tokens, so that another augmentation, order or cut of the windows finds
what is theirs or nothing; a change of the frozen weights empties the cache. On the CPU rows are computed one
by one, cache or not: matrix products of another height round differently, and a row's bits must not depend
on which others were found.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Iterator, MutableMapping

import torch
from torch import Tensor, nn

from bkray.config import Recipe
from bkray.config.savings import ActivationCache
from bkray.model import LanguageModel

logger = logging.getLogger(__name__)


def frozen_layers(recipe: Recipe, step: int) -> int:
    """How many of the first blocks keep their weights at `step`; with one of them the embedding does."""
    training = recipe.training
    return training.unfreeze.frozen(step, recipe.steps) if training.unfreeze else training.freeze or 0


def freeze(model: nn.Module, layers: int) -> None:
    """Take gradients, optimizer state and decay from the embedding and the first `layers` blocks alone.

    The head is the embedding's own matrix, so it keeps its weights as well; with 0 everything is trained.
    """
    assert isinstance(model, LanguageModel)  # the recipe refuses others
    model.requires_grad_(True)
    for module in _frozen(model, layers):
        module.requires_grad_(False)


def _frozen(model: LanguageModel, layers: int) -> list[nn.Module]:
    return [model.embedding, *(block for block in model.blocks[:layers])] if layers else []


class FrozenPrefix:
    """Token ids (R, N) to the stream (R, N, d) after the frozen layers, which run in eval mode."""

    def __init__(self, model: LanguageModel, layers: int, cache: ActivationCache | None) -> None:
        self.model, self.layers = model, layers
        self.cache = RowCache(cache) if cache else None
        self.reused = 0.0
        """Share of the rows of the last call that were found."""
        self._versions: list[int] = []
        self._digest = b""

    @torch.no_grad()
    def __call__(self, tokens_RN: Tensor) -> Tensor:
        for module in _frozen(self.model, self.layers):
            module.eval()
        if self.cache is None:
            return self._computed(tokens_RN)
        self._forget_if_changed(self.cache)
        keys = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in tokens_RN.cpu().numpy()]
        missing = [place for place, key in enumerate(keys) if key not in self.cache]
        found = {place: self.cache[key] for place, key in enumerate(keys) if key in self.cache}
        self.reused = len(found) / len(keys)
        if missing:
            rows = self._computed(tokens_RN[missing]).to(self.cache.dtype)
            found |= dict(zip(missing, rows, strict=True))
            for place, row in zip(missing, rows, strict=True):
                self.cache.keep(keys[place], row)
        stream = [found[place].to(tokens_RN.device) for place in range(len(keys))]
        return torch.stack(stream).float()

    def _computed(self, tokens_RN: Tensor) -> Tensor:
        parts = tokens_RN.split(1) if tokens_RN.device.type == "cpu" else [tokens_RN]
        return torch.cat([self.model.stream(part, self.layers) for part in parts])

    def _forget_if_changed(self, cache: RowCache) -> None:
        """Empty the cache of other weights; they are read only after something was written to them."""
        parameters = [p for module in _frozen(self.model, self.layers) for p in module.parameters()]
        versions = [parameter._version for parameter in parameters]
        if versions == self._versions:
            return
        digest = hashlib.blake2b()
        for parameter in parameters:
            digest.update(parameter.cpu().contiguous().view(torch.uint8).numpy().data)
        if digest.digest() != self._digest:
            cache.clear()
        self._versions, self._digest = versions, digest.digest()


class RowCache:
    """Tensors by key, up to a number of bytes; the first ones stay, until rows of another shape come.

    Epochs come round to the rows in turn: a cache that made room for the newest would have dropped each row
    before it is wanted again. Windows of a length that has passed do not come again.
    """

    def __init__(self, settings: ActivationCache) -> None:
        self.dtype: torch.dtype = getattr(torch, settings.dtype)
        self.max_bytes, self.bytes = settings.max_bytes, 0
        self._shape: torch.Size | None = None
        self._rows: MutableMapping[bytes, Tensor] = {} if settings.where == "memory" else _FileRows()

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def __getitem__(self, key: bytes) -> Tensor:
        return self._rows[key]

    def keep(self, key: bytes, row: Tensor) -> None:
        """Keep a copy of `row` where there is room for it."""
        if row.shape != self._shape:
            self.clear()
            self._shape = row.shape
        size = row.numel() * row.element_size()
        if key in self._rows or self.bytes + size > self.max_bytes:
            return
        try:
            self._rows[key] = row.to("cpu", copy=True)
        except OSError as error:
            where = tempfile.gettempdir()
            logger.warning("training.activation_cache stays at %d bytes: %s: %s", self.bytes, where, error)
            self.max_bytes = self.bytes
            return
        self.bytes += size

    def clear(self) -> None:
        self._rows.clear()
        self.bytes = 0


class _FileRows(MutableMapping[bytes, Tensor]):
    """Tensors in a file without a name, which the system removes with the process."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - open as long as this lives
        self._places: dict[bytes, tuple[int, torch.Size, torch.dtype]] = {}
        self._end = 0

    def __setitem__(self, key: bytes, row: Tensor) -> None:
        content = row.contiguous().view(torch.uint8).numpy().data
        self._file.seek(self._end)
        written = self._file.write(content)
        if written != content.nbytes:
            raise OSError(f"{written} of {content.nbytes} bytes were written")
        self._places[key] = (self._end, row.shape, row.dtype)
        self._end += content.nbytes

    def __getitem__(self, key: bytes) -> Tensor:
        place, shape, dtype = self._places[key]
        row = torch.empty(shape, dtype=dtype)
        self._file.seek(place)
        read = self._file.readinto(row.view(torch.uint8).numpy().data)
        assert read == row.nbytes, f"{read} of {row.nbytes} bytes were read"
        return row

    def __delitem__(self, key: bytes) -> None:
        del self._places[key]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def clear(self) -> None:
        self._places.clear()
        self._file.truncate(0)
        self._end = 0
