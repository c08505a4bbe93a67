"""The random state of a rank as one tensor of bytes: the host's generator and, on a GPU, the device's."""

from __future__ import annotations

import torch
from torch import Tensor


def rng_state(device: torch.device) -> Tensor:
    """(bytes,) uint8, on the host."""
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else state


def set_rng_state(device: torch.device, state: Tensor) -> None:
    """Take up what `rng_state` gave on a device of the same type."""
    host = len(torch.get_rng_state())
    torch.set_rng_state(state[:host])
    if device.type == "cuda" and len(state) > host:
        torch.cuda.set_rng_state(state[host:], device)
