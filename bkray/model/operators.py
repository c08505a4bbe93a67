"""Registering torch.library operators without torch's compiler.

`torch.library.custom_op` wraps every kernel in `torch._disable_dynamo`, whose first call imports the
compiler: about 2 s of processor time in each process that runs a model, compiled or not. The functions
underneath register the same operator and leave the compiler to those who compile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Operator:
    """The operator `name` ("namespace::operator"), which `kernel` computes on any device; mutates nothing."""

    def __init__(self, name: str, kernel: Callable[..., Any]) -> None:
        self.name = name
        torch.library.define(name, torch.library.infer_schema(kernel, mutates_args=()))
        torch.library.impl(name, "default")(kernel)
        namespace, operator = name.split("::")
        self._call = getattr(getattr(torch.ops, namespace), operator).default

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def register_fake(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        """Let `fake` give the shapes and types of the results where there are no values."""
        return torch.library.register_fake(self.name, fake)

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """Let `backward` give the gradients, from what `setup_context` saves."""
        torch.library.register_autograd(self.name, backward, setup_context=setup_context)


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Decorate the kernel of the operator `name`."""
    return lambda kernel: Operator(name, kernel)
