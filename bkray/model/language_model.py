"""What all our language models are: mixers and feed-forward layers in turn, around one residual stream.

    tokens (B, N) ─► embedding ─► RMSNorm ─► n_layers x [+ mixer, + feed-forward] ─► RMSNorm ─► head

They differ in their mixers (`mixers/`). Decoding carries every mixer's state from token to token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bkray.config import UserError
from bkray.config.loading import parse_section
from bkray.config.section import Section
from bkray.model.arguments import check_tokens
from bkray.model.layers import FeedForward, rms_norm, token_embedding

Tensor = torch.Tensor


class Mixer(Protocol):
    """A module x (B, N, d) -> (B, N, d), causal, and the same site by site."""

    def __call__(self, x_BNd: Tensor) -> Tensor: ...

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        """What it remembers before the first site."""
        ...

    def step(
        self, x_Bd: Tensor, state: tuple[Tensor, ...], position: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The output (B, d) of the site at `position`, and what is remembered then.

        All that mixers other than attention and GRU ask of `position` is whether it is above 0: there it may
        be a tensor (B, 1), a sequence its own.
        """
        ...


class State(NamedTuple):
    """What decoding carries from token to token: sites seen, and every mixer's memory."""

    position: int
    mixers: tuple[tuple[Tensor, ...], ...]


class Block(nn.Module):
    """x += mixer(RMSNorm(x)); x += feed-forward(RMSNorm(x))."""

    checkpointing = False
    """In training, keep only the input and compute the rest again for the gradient (arXiv 1604.06174)."""

    def __init__(self, mixer: Mixer, feed_forward: nn.Module) -> None:
        super().__init__()
        self.mixer, self.feed_forward = mixer, feed_forward

    def forward(self, x: Tensor) -> Tensor:
        if not (self.checkpointing and self.training):
            return self._pass(x)
        if torch.compiler.is_compiling():
            return checkpoint(self._pass, x, use_reentrant=False)
        return checkpoint(
            self._pass, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _reports_kept(self))
        )

    def _pass(self, x: Tensor) -> Tensor:
        x = x + self.mixer(rms_norm(x))
        return x + self.feed_forward(rms_norm(x))

    def step(self, x: Tensor, state: tuple[Tensor, ...], position: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        mixed, state = self.mixer.step(rms_norm(x), state, position)
        x = x + mixed
        return x + self.feed_forward(rms_norm(x)), state


@contextmanager
def _reports_kept(block: nn.Module) -> Iterator[None]:
    """What its modules report stays that of the pass before: checkpointing's second pass would leave its own,
    and with it, until the next step, all that the pass computed."""
    names = ("auxiliary", "site_sums", "measured")
    before = [
        (module, {name: module.__dict__[name] for name in names if name in module.__dict__})
        for module in block.modules()
    ]
    try:
        yield
    finally:
        for module, left in before:
            for name in names:
                module.__dict__.pop(name, None)
            module.__dict__.update(left)


class Stack(nn.Module):
    """How the residual stream x (B, N, d) goes through the blocks: here every site through all of them.

    `halting.py` and `multiscale.py` leave out some of the sites. The memories are tuples of tensors.
    """

    def forward(self, blocks: Sequence[Block], x: Tensor) -> Tensor:
        for block in blocks:
            x = block(x)
        return x

    def initial_state(self, blocks: Sequence[Block], batch: int) -> tuple[tuple[Tensor, ...], ...]:
        """What the blocks, and the way through them, remember before the first site."""
        return tuple(block.mixer.initial_state(batch) for block in blocks)

    def step(
        self, blocks: Sequence[Block], x: Tensor, memories: Iterable[tuple[Tensor, ...]], position: int
    ) -> tuple[Tensor, tuple[tuple[Tensor, ...], ...]]:
        """x (B, d) of the site at `position` after the blocks, and what is remembered then."""
        after = []
        for block, memory in zip(blocks, memories, strict=True):
            x, memory = block.step(x, memory, position)  # noqa: PLW2901
            after.append(memory)
        return x, tuple(after)


class LanguageModel(nn.Module):
    """Token ids (B, N) to next-token logits (B, N, V); UserError for ids outside [0, V) and for no tokens."""

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        mixers: Sequence[Mixer],
        feed_forward: Callable[[int], nn.Module] = FeedForward,
        stack: Stack | None = None,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.stack = stack or Stack()
        self.embedding = token_embedding(vocab_size, d_model)
        blocks = nn.ModuleList(Block(mixer, feed_forward(d_model)) for mixer in mixers)
        self.blocks = cast("Sequence[Block]", blocks)

    @property
    def checkpointing(self) -> bool:
        """Whether the blocks keep only their inputs in training."""
        return self.blocks[0].checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        for block in self.blocks:
            block.checkpointing = value

    def forward(self, tokens_BN: Tensor) -> Tensor:
        return self.head(self.hidden(tokens_BN))

    def hidden(self, tokens_BN: Tensor) -> Tensor:
        """The normalised final states (B, N, d): `head` of any slice of them gives that slice's logits."""
        return self.hidden_from(self.stream(tokens_BN))

    def stream(self, tokens_BN: Tensor, layers: int = 0) -> Tensor:
        """The residual stream (B, N, d) after the embedding and the first `layers` blocks.

        These must be blocks that the stack takes every site through, whatever the site.
        """
        check_tokens(tokens_BN, 2, self.vocab_size)
        x = rms_norm(self.embedding(tokens_BN))
        for block in self.blocks[:layers]:
            x = block(x)
        return x

    def hidden_from(self, x_BNd: Tensor, layers: int = 0) -> Tensor:
        """The rest of `hidden`, after `stream` with the same `layers`."""
        blocks = self.blocks
        if layers:
            blocks = cast("Sequence[Block]", [*[nn.Identity()] * layers, *self.blocks[layers:]])
        return rms_norm(self.stack(blocks, x_BNd))

    def auxiliary_losses(
        self, progress: float = 1.0, total: Callable[[Tensor], Tensor] = lambda sums: sums
    ) -> dict[str, Tensor]:
        """What the last forward pass in training mode adds to the loss, by name, weights included.

        Each is given once: modules that have such terms keep them in `auxiliary` until then. One whose weight
        has a schedule says in `schedule` what factor it takes at `progress`, the share of the training done.

        A term that is not a mean over sites, but `of_means`, keeps the sums over its sites, and their number,
        in `site_sums`. `total` adds such sums up over the ranks that train together: the term is that of all
        their sites, and the mean of their gradients its gradient.
        """
        terms: dict[str, Tensor] = {}
        for module, name, term in [*self._left("auxiliary"), *self._of_means(total)]:
            weighted = module.schedule(progress) * term if hasattr(module, "schedule") else term
            terms[name] = terms[name] + weighted if name in terms else weighted
        return terms

    def _of_means(self, total: Callable[[Tensor], Tensor]) -> Iterator[tuple[Any, str, Tensor]]:
        left = list(self._left("site_sums"))
        if not left:
            return
        sums, sites = zip(*(given for _, _, given in left), strict=True)
        counts = sums[0].new_tensor([*sites, 1])
        everywhere = total(torch.cat([counts, *(each.detach().flatten() for each in sums)]))
        counts, *totals = everywhere.split([len(counts), *(each.numel() for each in sums)])
        for (module, name, _), own, all_own, count in zip(left, sums, totals, counts[:-1], strict=True):
            ranks = counts[-1]
            means = all_own.view_as(own) / count + (own - own.detach()) * ranks / count
            yield module, name, module.of_means(means)

    def measurements(self) -> dict[str, float]:
        """What the last forward pass measured of itself, by name, the mean over its modules.

        Each is given once: modules that measure keep their figures in `measured` until then.
        """
        figures: dict[str, list[float]] = {}
        for _, name, figure in self._left("measured"):
            figures.setdefault(name, []).append(float(figure))
        return {name: sum(values) / len(values) for name, values in figures.items()}

    def _left(self, attribute: str) -> Iterator[tuple[Any, str, Any]]:
        for module in self.modules():
            for name, value in module.__dict__.pop(attribute, {}).items():
                yield module, name, value

    def head(self, hidden: Tensor) -> Tensor:
        """(..., d) to logits (..., V), with the embedding's own matrix."""
        return F.linear(hidden, self.embedding.weight)

    def initial_state(self, batch: int) -> State:
        """The state of `batch` sequences before their first token."""
        return State(0, self.stack.initial_state(self.blocks, batch))

    def step(self, tokens_B: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one token a sequence: logits (B, V) for the next, and the new state (the old stays valid)."""
        check_tokens(tokens_B, 1, self.vocab_size)
        x = rms_norm(self.embedding(tokens_B))
        x, mixers = self.stack.step(self.blocks, x, state.mixers, state.position)
        return self.head(rms_norm(x)), State(state.position + 1, mixers)


def check_config(config: Any, section: type[Section], kind: str) -> None:
    """Give `config`, a dataclass, the values that its section of a recipe makes of its own: {} is an option
    with its defaults, "32" is 32. UserError where the section refuses them, or there is no vocabulary."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    size = values.pop("vocab_size")
    if not isinstance(size, int) or size < 1:
        raise UserError(f"vocab_size must be an integer, at least 1, not {size!r}")
    parsed = parse_section(section, {"kind": kind, **values}, type(config).__name__)
    for name in values:
        object.__setattr__(config, name, getattr(parsed, name))  # it is frozen
