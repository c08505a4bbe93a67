"""ZeRO stage 1 (arXiv 1910.02054): every rank updates its part of the parameters and keeps its state alone.

    averaged gradients ─► this rank's pieces ─► AdamW, Muon ─► every rank sends its pieces to the others

AdamW works element by element, so its parameters are cut anywhere; Muon's matrices stay whole. torch's
ZeroRedundancyOptimizer gives whole parameters to ranks: a tied embedding alone may be half of the state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bkray.training.optimization.optimizers import is_muon, optimizers_of

_ADAMW_NUMBERS = 2  # of state an element; Muon keeps one
_LANES = 16  # float32 in a vector of AVX-512: the fused AdamW rounds what is left of a tensor otherwise


@dataclass(frozen=True, eq=False)
class Piece:
    """What `rank` updates of a parameter: the elements [start, stop) of it, flat; Muon's as matrices."""

    parameter: nn.Parameter
    start: int
    stop: int
    rank: int
    shape: tuple[int, ...]

    def of(self, whole: Tensor) -> Tensor:
        """This piece of a tensor that is shaped like the parameter; it shares its memory."""
        return whole.view(-1)[self.start : self.stop].view(self.shape)


class ShardedOptimizer(torch.optim.Optimizer):
    """`whole`, which keeps no state here, divided among the ranks; its `param_groups` drive all of them.

    Every rank calls `step`, with the same gradients, and `state_dict`, whose result is `whole`'s, complete
    on rank 0 alone. All ranks of any world load it, and so does the optimizer that `build_optimizer` gives.
    """

    def __init__(self, whole: torch.optim.Optimizer, rank: int, size: int) -> None:
        self.whole, self.rank = whole, rank
        super().__init__(whole.param_groups, {})
        pieces = list(_pieces(whole, size))
        self.sent = [[piece for piece in pieces if piece.rank == sender] for sender in range(size)]
        self.mine = {piece: nn.Parameter(piece.of(piece.parameter.detach())) for piece in self.sent[rank]}
        self.locals = [self._local(one) for one in optimizers_of(whole)]
        self._link()

    def _link(self) -> None:
        self.param_groups = self.whole.param_groups

    def _local(self, one: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """An optimizer as `one`, of this rank's pieces of its parameters."""
        groups = []
        for group in one.param_groups:
            ours = {id(parameter) for parameter in group["params"]}
            mine = [own for piece, own in self.mine.items() if id(piece.parameter) in ours]
            groups.append({**group, "params": mine})
        return type(one)(groups, lr=one.param_groups[0]["lr"])  # type: ignore[call-arg]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        if closure is not None:
            raise ValueError("a closure is not supported: compute the gradients before step()")
        for piece, own in self.mine.items():
            gradient = piece.parameter.grad
            own.grad = None if gradient is None else piece.of(gradient)
        for one, local in zip(optimizers_of(self.whole), self.locals, strict=True):
            for group, own_group in zip(one.param_groups, local.param_groups, strict=True):
                own_group.update({key: value for key, value in group.items() if key != "params"})
            local.step()
        self._share()

    def _share(self) -> None:
        """Give every rank the pieces of all: one broadcast a sender, all under way at once."""
        under_way = []
        for sender, pieces in enumerate(self.sent):
            if pieces:
                parts = [piece.of(piece.parameter.detach()) for piece in pieces]
                buffer = torch.cat([part.flatten() for part in parts])
                under_way.append((sender, parts, buffer, dist.broadcast(buffer, sender, async_op=True)))
        for sender, parts, buffer, work in under_way:
            work.wait()
            if sender != self.rank:
                received = buffer.split([part.numel() for part in parts])
                for part, values in zip(parts, received, strict=True):
                    part.copy_(values.view_as(part))

    def state_dict(self) -> dict[str, Any]:
        pieces = [piece for sent in self.sent for piece in sent]
        mine = {
            index: self._own_state(piece) for index, piece in enumerate(pieces) if piece.rank == self.rank
        }
        gathered: list[Any] | None = [None] * len(self.sent) if self.rank == 0 else None
        dist.gather_object(mine, gathered)
        owner = {
            id(p): one for one in optimizers_of(self.whole) for g in one.param_groups for p in g["params"]
        }
        for states in gathered or []:
            for index, state in states.items():
                piece = pieces[index]
                whole = owner[id(piece.parameter)].state[piece.parameter]
                for name, value in state.items():
                    if not value.ndim:
                        whole[name] = value
                        continue
                    piece.of(whole.setdefault(name, value.new_empty(piece.parameter.shape))).copy_(value)
        state = self.whole.state_dict()
        self._forget()
        return state

    def _own_state(self, piece: Piece) -> dict[str, Tensor]:
        own = self.mine[piece]
        return {
            name: value.cpu() for local in self.locals for name, value in local.state.get(own, {}).items()
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.whole.load_state_dict(state_dict)
        for one, local in zip(optimizers_of(self.whole), self.locals, strict=True):
            local.state.clear()
            mine = {id(own) for group in local.param_groups for own in group["params"]}
            for piece, own in self.mine.items():
                if id(own) in mine and (whole := one.state.get(piece.parameter)):
                    local.state[own] = {
                        name: piece.of(value).clone() if value.ndim else value.clone()
                        for name, value in whole.items()
                    }
        self._forget()
        self._link()

    def _forget(self) -> None:
        for one in optimizers_of(self.whole):
            one.state.clear()


def _pieces(whole: torch.optim.Optimizer, size: int) -> Iterator[Piece]:
    """All parameters in pieces that give every rank as many bytes of state."""
    groups = [group for one in optimizers_of(whole) for group in one.param_groups]
    matrices = [
        (parameter, start)
        for group in groups
        if is_muon(group)
        for parameter in group["params"]
        for start in range(0, parameter.numel(), _matrix(parameter))
    ]
    others = [parameter for group in groups if not is_muon(group) for parameter in group["params"]]
    owners, cuts = divide(
        [_matrix(parameter) for parameter, _ in matrices], [parameter.numel() for parameter in others], size
    )
    for (parameter, start), rank in zip(matrices, owners, strict=True):
        yield Piece(parameter, start, start + _matrix(parameter), rank, tuple(parameter.shape[-2:]))
    for parameter, cut in zip(others, cuts, strict=True):
        start = 0
        for rank, count in enumerate(cut):
            if count:
                yield Piece(parameter, start, start + count, rank, (count,))
                start += count


def _matrix(parameter: nn.Parameter) -> int:
    """Elements of one matrix of a stack."""
    return math.prod(parameter.shape[-2:])


def divide(whole: Sequence[int], cuttable: Sequence[int], size: int) -> tuple[list[int], list[list[int]]]:
    """Share out matrices of so many elements, a number of state each, and tensors that may be cut, two each.

    Returns the rank of every matrix, and of every tensor the elements for every rank. Matrices go, largest
    first, to the rank that holds the least; the rest fills the ranks up to one level as far as it goes. Cuts
    lie at multiples of `_LANES`, so that every element is computed as in the whole tensor.
    """
    held, owners = [0] * size, [0] * len(whole)
    for index in sorted(range(len(whole)), key=lambda index: -whole[index]):
        owners[index] = held.index(min(held))
        held[owners[index]] += whole[index]
    level = _level(held, _ADAMW_NUMBERS * sum(cuttable))
    room = [max(0, -(-(level - numbers) // _ADAMW_NUMBERS)) for numbers in held]
    cuts, rank = [], 0
    for elements in cuttable:
        cut, left = [0] * size, elements
        while left:
            taken = min(left, -(-room[rank] // _LANES) * _LANES)
            cut[rank], room[rank], left = taken, room[rank] - taken, left - taken
            rank += room[rank] <= 0
        cuts.append(cut)
    return owners, cuts


def _level(held: Sequence[int], more: int) -> int:
    """How high the lowest ranks stand when `more` is poured over them."""
    lowest = sorted(held)
    levels = (-(-(sum(lowest[:count]) + more) // count) for count in range(1, len(held) + 1))
    return min(levels)
