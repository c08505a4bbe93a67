"""The recipe's `model` section: which network, its sizes and its options."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from bkray.config.section import Count, Section

MixerKind = Literal["spectral", "gated", "potential", "diagonal"]


class WindowedAttention(Section):
    """Softmax attention to the last `window` sites in the place of some layers' mixers."""

    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    """Numbers of the layers, the first is 0."""
    window: Annotated[int, Field(ge=2)] = 64
    n_heads: Count = 4


class ResNetBKModel(Section):
    kind: Literal["resnet_bk"]
    d_model: Annotated[int, Field(ge=16)] = 192
    n_layers: Count = 4
    n_heads: Count = 16
    mixer: MixerKind = "spectral"
    """The resolvent by gates and phases, without phases, from a learned potential, or its bare diagonal."""
    longest_memory: Annotated[float, Field(gt=2.0)] = 256.0
    """Sites; at the start memory lengths lie log-uniform between 2 and this."""
    attention: WindowedAttention | None = None

    @model_validator(mode="after")
    def _fits(self) -> ResNetBKModel:
        _check_heads(self.d_model, self.n_heads)
        if self.mixer == "gated" and self.changed("n_heads"):
            raise ValueError(f"n_heads {self.n_heads} has no effect with mixer gated: remove it")
        if self.attention:
            if max(self.attention.layers) >= self.n_layers:
                raise ValueError(
                    f"attention.layers {list(self.attention.layers)}: with n_layers {self.n_layers} the last "
                    f"is {self.n_layers - 1}"
                )
            _check_heads(self.d_model, self.attention.n_heads, rotary=True)
        return self


class TransformerModel(Section):
    kind: Literal["transformer"]
    d_model: Annotated[int, Field(ge=16)] = 192
    n_layers: Count = 4
    n_heads: Count = 4

    @model_validator(mode="after")
    def _fits(self) -> TransformerModel:
        _check_heads(self.d_model, self.n_heads, rotary=True)
        return self


class GRUModel(Section):
    kind: Literal["gru"]
    d_model: Annotated[int, Field(ge=16)] = 192
    n_layers: Count = 4


class ImportModel(Section):
    """Your own: `target` names a function (vocab_size, **arguments) -> nn.Module.

    The module takes tokens (B, N) to logits (B, N, V).
    """

    kind: Literal["import"]
    target: str
    arguments: dict[str, Any] = Field(default_factory=dict)

    @field_validator("target")
    @classmethod
    def _module_and_name(cls, target: str) -> str:
        if not re.fullmatch(r"[\w.]+:\w+", target):
            raise ValueError(f"{target!r} must read package.module:function")
        return target


def _check_heads(d_model: int, n_heads: int, rotary: bool = False) -> None:
    if d_model % n_heads:
        raise ValueError(f"d_model {d_model} must be a multiple of n_heads {n_heads}")
    if rotary and (d_model // n_heads) % 2:
        raise ValueError(
            f"d_model {d_model} over n_heads {n_heads} gives heads of odd width {d_model // n_heads}, and "
            "rotary positions need an even one"
        )


Model = Annotated[ResNetBKModel | TransformerModel | GRUModel | ImportModel, Field(discriminator="kind")]
