"""From the recipe's `model` section to a module: token ids (B, N) in, logits (B, N, V) out."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from bkray.config import UserError
from bkray.config.model import GRUModel, ImportModel, Model, ResNetBKModel, TransformerModel
from bkray.model.comparators import GRU, GRUConfig, Transformer, TransformerConfig
from bkray.model.resnet_bk import ResNetBK, ResNetBKConfig

_KINDS = {
    ResNetBKModel: (ResNetBK, ResNetBKConfig),
    TransformerModel: (Transformer, TransformerConfig),
    GRUModel: (GRU, GRUConfig),
}


def build_model(model: Model, vocab_size: int) -> nn.Module:
    """The untrained model of a recipe section, initialised from torch's global random state.

    Raises UserError where `model.target` of kind import cannot be imported, called or is no nn.Module.
    """
    if isinstance(model, ImportModel):
        return _imported(model, vocab_size)
    network, _ = _KINDS[type(model)]
    return network(model_config(model, vocab_size))


def model_config(model: Model, vocab_size: int) -> Any:
    """The configuration of a model of this package; raises UserError where that cannot be built."""
    _, config = _KINDS[type(model)]
    return config(vocab_size, **{key: value for key, value in model if key != "kind"})


def _imported(model: ImportModel, vocab_size: int) -> nn.Module:
    module_name, name = model.target.split(":")
    where = f"model.target {model.target!r}"
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"{where}: importing {module_name} failed ({error}): install it or correct the path"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"{where}: module {module_name} has no function {name}")
    try:
        built = function(vocab_size, **model.arguments)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{where}: calling {name}({vocab_size}, **{model.arguments}) failed: {error}; see model.arguments"
        ) from error
    if not isinstance(built, nn.Module):
        raise UserError(f"{where}: {name} returned {type(built).__name__}, not a torch.nn.Module")
    return built
