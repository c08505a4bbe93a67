"""The cost ledger: everything that a run spent, by kind."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Cost:
    """FLOPs (a multiplication and an addition count as two), tokens, and seconds of wall-clock."""

    flops: float = 0.0
    tokens: int = 0
    seconds: float = 0.0


class Ledger:
    """Adds up costs by kind, for example training, optimizer, proxy, scoring, evaluation."""

    def __init__(self, by_kind: dict[str, dict[str, Any]] | None = None) -> None:
        self._costs = {kind: Cost(**cost) for kind, cost in (by_kind or {}).items()}

    def charge(self, kind: str, *, flops: float = 0.0, tokens: int = 0, seconds: float = 0.0) -> None:
        """Add a cost; raises ValueError for a negative one."""
        if flops < 0 or tokens < 0 or seconds < 0:
            raise ValueError(
                f"{kind}: a cost is never negative (flops {flops}, tokens {tokens}, seconds {seconds})"
            )
        cost = self._costs.setdefault(kind, Cost())
        cost.flops += flops
        cost.tokens += int(tokens)
        cost.seconds += seconds

    def merge(self, by_kind: dict[str, dict[str, Any]]) -> None:
        """Charge all of another ledger's table."""
        for kind, cost in by_kind.items():
            self.charge(kind, **cost)

    @property
    def total_flops(self) -> float:
        return sum(cost.flops for cost in self._costs.values())

    def table(self) -> dict[str, dict[str, Any]]:
        """{kind: {flops, tokens, seconds}}, in the order of the first charge."""
        return {kind: asdict(cost) for kind, cost in self._costs.items()}

    def state_dict(self) -> dict[str, dict[str, Any]]:
        return self.table()

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        self._costs = {kind: Cost(**cost) for kind, cost in state.items()}
