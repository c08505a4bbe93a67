"""BK-Core operators, the models built on them, and the comparators."""

from bkray.model.build import build_model, model_config
from bkray.model.comparators import GRU, GRUConfig, Transformer, TransformerConfig
from bkray.model.generate import generate, generate_each
from bkray.model.language_model import LanguageModel
from bkray.model.resnet_bk import ResNetBK, ResNetBKConfig
from bkray.model.resolvent import operator_of, resolvent_diagonal, resolvent_mix
from bkray.model.spectral import spectral_mix, spectral_scan

__all__ = [
    "GRU",
    "GRUConfig",
    "LanguageModel",
    "ResNetBK",
    "ResNetBKConfig",
    "Transformer",
    "TransformerConfig",
    "build_model",
    "generate",
    "generate_each",
    "model_config",
    "operator_of",
    "resolvent_diagonal",
    "resolvent_mix",
    "spectral_mix",
    "spectral_scan",
]
