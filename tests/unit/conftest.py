import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operator returned."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            self.most = max(self.most, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
        return out


@pytest.fixture
def largest():
    """A context; afterwards its `most` says how large the tensors in it became."""
    return Largest()


@pytest.fixture
def unlistable(monkeypatch):
    """Let folders of a name not be listed; permissions would not hold for root."""
    usual = os.scandir

    def refuse(name):
        def scandir(path):
            if str(path).endswith(name):
                raise PermissionError(13, "Permission denied", str(path))
            return usual(path)

        monkeypatch.setattr(os, "scandir", scandir)

    return refuse
