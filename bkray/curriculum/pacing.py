"""Pacing: the share of the data, easiest first, that is available as training progresses."""

from __future__ import annotations

import math
from typing import Literal

PacingKind = Literal["linear", "exponential", "root", "step"]

_STEPS = 5


def fraction(progress: float, kind: PacingKind = "linear", start: float = 0.1) -> float:
    """The share in (0, 1] of the data that is available at `progress` in [0, 1].

    Every kind begins at `start`, never falls, and reaches 1 at progress 1:

    - linear: start + (1 − start) p
    - root: √(start² + (1 − start²) p), competence-based pacing (Platanios et al. 2019, arXiv 1903.09848)
    - exponential: start^(1 − p), slow first and fast at the end
    - step: five equal stairs from start to 1

    Raises ValueError for a progress or a start outside its range, or an unknown kind.
    """
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress {progress} must lie in [0, 1]")
    if not 0.0 < start <= 1.0:
        raise ValueError(f"start {start} must lie in (0, 1]")
    if kind == "linear":
        share = start + (1.0 - start) * progress
    elif kind == "root":
        share = math.sqrt(start**2 + (1.0 - start**2) * progress)
    elif kind == "exponential":
        share = start ** (1.0 - progress)
    elif kind == "step":
        share = start + (1.0 - start) * min(math.floor(progress * _STEPS), _STEPS - 1) / (_STEPS - 1)
    else:
        raise ValueError(f"pacing {kind!r} is unknown: choose linear, exponential, root or step")
    return min(1.0, share)
