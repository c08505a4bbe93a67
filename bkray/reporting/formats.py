"""Numbers as a reader wants them; a missing one is a dash."""

from __future__ import annotations

import math
from typing import Any

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MISSING = "–"


def decimal(number: float | None, places: int = 3) -> str:
    """1.234; "not finite" for NaN, infinity, and None, which is how strict JSON writes these."""
    return f"{number:,.{places}f}" if number is not None and math.isfinite(number) else "not finite"


def count(number: float | None) -> str:
    """1,234,567"""
    return MISSING if number is None else f"{number:,.0f}"


def flops(number: float | None) -> str:
    """3.21 × 10¹⁵"""
    if number is None or number == 0:
        return MISSING if number is None else "0"
    mantissa, exponent = f"{number:.2e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(SUPERSCRIPT)}"


def duration(seconds: float | None) -> str:
    """850 ms, 12.3 s, 4 min 05 s, 2 h 03 min"""
    if seconds is None:
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds >= 1 or seconds == 0 else f"{seconds * 1000:.0f} ms"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def share(part: float | None, whole: float | None) -> str:
    """12.3 %"""
    return f"{100 * part / whole:.1f} %" if part is not None and whole else MISSING


def value(anything: Any) -> str:
    """A setting as YAML would show it, floats to four digits: null, true, 0.003, text."""
    if anything is None or isinstance(anything, bool):
        return {None: "null", True: "true", False: "false"}[anything]
    return f"{anything:.4g}" if isinstance(anything, float) else str(anything)
