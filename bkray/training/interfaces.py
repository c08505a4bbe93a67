"""What the loop asks of its callers' objects and of its own parts."""

from __future__ import annotations

from typing import Any, Protocol


class Reporter(Protocol):
    """Where log lines go; `bkray.reporting.RunLog` is one."""

    def log(self, step: int, **values: Any) -> None: ...

    def truncate_after(self, step: int) -> dict[str, Any] | None:
        """Drop the lines beyond `step`; the last of them tells what an interrupted attempt had spent."""


class Stateful(Protocol):
    """What a checkpoint keeps; `load_state_dict` of what `state_dict` gave goes on as if never stopped."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...
