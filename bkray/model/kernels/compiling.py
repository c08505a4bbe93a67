"""How the CPU kernels are compiled. Each is one fused pass; `backends.run_kernel` calls them.

Every kernel takes `first, last, chunk` and arrays (B, N, C): item t is batch row t // chunks, channels (t %
chunks) * chunk onwards. The inner loops run over contiguous channels, write few rows each and keep the
state of a recursion in small local arrays: the compiler can check such loops for aliasing, and vectorises
them. Indices of channels are unsigned, because a signed one may count from the end, which keeps a loop from
being vectorised; slices of rows would do as well, but each costs an atomic count of references.
"""

from __future__ import annotations

from typing import Any

from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]

# Contraction to fused multiply-adds only: nothing is reassociated, so results do not depend on the length.
compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
