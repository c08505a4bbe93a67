"""The metrics of a run: JSON Lines, one line a logged step, only ever appended to.

    training loop ─► RunLog.log ─► metrics.jsonl ─► RunLog.read ─► figures, report
                        resume ─► RunLog.truncate_after(checkpointed step)

A line counts once its line feed is there, so a process that dies while writing loses that line and no other.
JSON knows no NaN and no infinity: both are written as null.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from bkray.config import UserError
from bkray.reporting.files import write_atomically


class RunLog:
    """Appends to the log at `path`, which is made at the first line; a torn last line is dropped at once."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            self._rewrite(self.read(self.path))

    def log(self, step: int, **values: Any) -> None:
        """Append one line; it is handed to the system before this returns.

        Values: what JSON holds, numpy scalars, one-element tensors. Raises TypeError for anything else,
        UserError where the line cannot be written.
        """
        line = _line({"step": step, **values})
        try:
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(line)
        except OSError as error:
            raise UserError(
                f"{self.path}: step {step} could not be written ({error.strerror}): mend that, for "
                "example free some space, and run the same command again"
            ) from error

    @staticmethod
    def read(path: str | Path) -> list[dict[str, Any]]:
        """All whole lines in order. Raises UserError for a line that is not one of a run log."""
        *lines, _torn = Path(path).read_bytes().split(b"\n")
        return [_parsed(line, number, path) for number, line in enumerate(lines, start=1)]

    def truncate_after(self, step: int) -> dict[str, Any] | None:
        """Drop the lines beyond `step`, which a resumed run will write again; return the last of them."""
        rows = self.read(self.path) if self.path.exists() else []
        dropped = [values for values in rows if values["step"] > step]
        if not dropped:
            return None
        self._rewrite([values for values in rows if values["step"] <= step])
        return dropped[-1]

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        write_atomically(self.path, "".join(map(_line, rows)))


def _line(values: dict[str, Any]) -> str:
    return json.dumps(strict(values), allow_nan=False) + "\n"


def strict(value: Any) -> Any:
    """`value` as strict JSON holds it."""
    if isinstance(value, dict):
        return {key: strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [strict(inner) for inner in value]
    if hasattr(value, "item"):
        return strict(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parsed(line: bytes, number: int, path: str | Path) -> dict[str, Any]:
    mend = "restore the file or delete it and start the run anew"
    try:
        values = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}, line {number} is not JSON ({error}): {mend}") from error
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
        raise UserError(f"{path}, line {number} has no step: {mend}")
    return values
