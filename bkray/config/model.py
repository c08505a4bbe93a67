"""The recipe's `model` section: which network, its sizes and its options."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from bkray.config.section import Count, Section

MixerKind = Literal["spectral", "gated", "potential", "diagonal"]
ETA_MIN = 1e-3
"""The least absorption of the mixers `potential` and `diagonal`, which forget after 2 / ETA_MIN sites."""
SPARSE_MIXERS = ("spectral", "gated")
"""The mixers that `sparsity` works with: those whose state a site drives."""


class WindowedAttention(Section):
    """Softmax attention to the last `window` sites, after a convolution, in place of some layers' mixers."""

    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    """Numbers of the layers, the first is 0."""
    window: Annotated[int, Field(ge=2)] = 64
    n_heads: Count = 4


class Halting(Section):
    """Adaptive computation: sites halt before the last layer and are not computed again."""

    first_layer: Count = 1
    """Number of the first layer that sites may go without, the first of all being 0."""
    threshold: Annotated[float, Field(gt=0.0, le=0.999)] = 0.5
    """A site halts where the probability that it has not halted yet is no longer above this; nearer to 1 no
    site would get to a deeper layer."""
    ponder: Annotated[float, Field(gt=0.0)] = 0.01
    """Ponder cost: what a layer at one site adds to its loss, nats."""
    warmup: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2
    """Share of the training in which the ponder cost rises to that: at first no layer is worth its cost."""

    def check(self, n_layers: int, attention: WindowedAttention | None) -> None:
        """ValueError where the layers do not allow it."""
        if self.first_layer >= n_layers:
            raise ValueError(
                f"halting.first_layer {self.first_layer}: with n_layers {n_layers} the last is {n_layers - 1}"
            )
        if attention and max(attention.layers) >= self.first_layer:
            raise ValueError(
                f"attention.layers {list(attention.layers)}: layers from halting.first_layer "
                f"{self.first_layer} on see other sites in each sequence, which attention's positions cannot "
                "follow: move attention below it or raise halting.first_layer"
            )


class Multiscale(Section):
    """Coarse layers: they run once for `factor` sites."""

    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    """Numbers of the layers, the first is 0; neighbours share one pooling."""
    factor: Annotated[int, Field(ge=2)] = 2

    def check(self, n_layers: int) -> None:
        """ValueError where there are no such layers."""
        if max(self.layers) >= n_layers:
            raise ValueError(
                f"multiscale.layers {list(self.layers)}: with n_layers {n_layers} the last is {n_layers - 1}"
            )
        if len(set(self.layers)) < len(self.layers):
            raise ValueError(f"multiscale.layers {list(self.layers)} names a layer more than once")
        if len(self.layers) == n_layers:
            raise ValueError(
                "multiscale.layers names all layers, and one must see every site: leave one out or raise "
                "n_layers"
            )


class MixtureOfExperts(Section):
    """Experts in the place of every feed-forward layer: a token goes through the `top_k` likeliest."""

    count: Annotated[int, Field(ge=2)] = 4
    top_k: Count = 1
    width: Count | None = None
    """Hidden width of an expert; null: 4 d_model / top_k, which costs a token what the dense layer does."""
    balance: Annotated[float, Field(ge=0.0)] = 0.01
    """Weight of the load-balance loss."""

    @model_validator(mode="after")
    def _fits(self) -> MixtureOfExperts:
        if self.top_k > self.count:
            raise ValueError(
                f"top_k {self.top_k} must be at most count {self.count}: there are no more experts"
            )
        if self.top_k == self.count and self.changed("balance"):
            raise ValueError(
                f"balance has no effect with top_k {self.top_k}, every expert: remove it or lower top_k"
            )
        return self


class KoopmanObjective(Section):
    """An auxiliary loss: a learned linear operator predicts the next final state from the present one."""

    weight: Annotated[float, Field(gt=0.0)] = 0.1
    warmup: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Share of the training in which the weight rises from 0."""


class SiteSparsity(Section):
    """A learned gate per layer and site decides whether the site drives the recurrence."""

    density: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Share of the sites that are to be open."""
    weight: Annotated[float, Field(gt=0.0)] = 1.0
    """Of the penalty (share of open sites - density)^2, a layer."""


class ResNetBKModel(Section):
    kind: Literal["resnet_bk"]
    d_model: Annotated[int, Field(ge=16)] = 192
    n_layers: Count = 4
    n_heads: Count = 16
    mixer: MixerKind = "spectral"
    """The resolvent by gates and phases, without phases, from a learned potential, or its bare diagonal."""
    longest_memory: Annotated[float, Field(gt=2.0, le=1e6)] = 256.0
    """Sites; at the start memory lengths lie log-uniform between 2 and this."""
    attention: WindowedAttention | None = None
    halting: Halting | None = None
    multiscale: Multiscale | None = None

    experts: MixtureOfExperts | None = None
    koopman: KoopmanObjective | None = None
    sparsity: SiteSparsity | None = None
    feed_forward_width: Count | None = None
    """Channels of a feed-forward layer; null: 4 d_model."""

    @model_validator(mode="after")
    def _fits(self) -> ResNetBKModel:
        stack = partial(check_stack, self.n_layers, self.attention, self.halting, self.multiscale)
        checks: list[Callable[[], None]] = [self._check_mixer, self._check_attention, stack]
        checks += [self._check_halting, self._check_sparsity, self._check_experts]
        if faults := [fault for check in checks if (fault := _fault_of(check))]:
            raise ValueError("\n".join(faults))
        return self

    def _check_mixer(self) -> None:
        if self.mixer == "gated" and self.changed("n_heads"):
            raise ValueError(f"n_heads {self.n_heads} has no effect with mixer gated: remove it")
        if self.mixer in ("spectral", "potential") and not self._attention_takes_all():
            _check_heads(self.d_model, self.n_heads)
        if self.mixer in ("potential", "diagonal") and self.longest_memory > 1 / ETA_MIN:
            raise ValueError(
                f"longest_memory {self.longest_memory:g}: mixer {self.mixer} starts with at most "
                f"{1 / ETA_MIN:g} sites: lower it or take mixer spectral or gated"
            )

    def _attention_takes_all(self) -> bool:
        return self.attention is not None and set(self.attention.layers) >= set(range(self.n_layers))

    def _check_attention(self) -> None:
        if not self.attention:
            return
        if max(self.attention.layers) >= self.n_layers:
            raise ValueError(
                f"attention.layers {list(self.attention.layers)}: with n_layers {self.n_layers} the last "
                f"is {self.n_layers - 1}"
            )
        if len(set(self.attention.layers)) < len(self.attention.layers):
            raise ValueError(f"attention.layers {list(self.attention.layers)} names a layer more than once")
        _check_heads(self.d_model, self.attention.n_heads, "attention.n_heads", rotary=True)
        inert = [key for key in ("mixer", "n_heads", "longest_memory") if self.changed(key)]
        if inert and self._attention_takes_all():
            raise ValueError(
                f"{', '.join(inert)}: no effect where attention takes every layer: remove it or one of "
                "attention.layers"
            )

    def _check_halting(self) -> None:
        counting = [option for option in ("experts", "sparsity") if getattr(self, option)]
        if self.halting and counting:
            raise ValueError(
                f"halting cannot take {' and '.join(counting)}, which would count sites that have halted: "
                "remove one"
            )

    def _check_sparsity(self) -> None:
        if self.sparsity and self.mixer not in SPARSE_MIXERS:
            raise ValueError(
                f"sparsity has no effect with mixer {self.mixer}: remove it or take mixer "
                f"{' or '.join(SPARSE_MIXERS)}"
            )
        if self.sparsity and self._attention_takes_all():
            raise ValueError(
                "sparsity has no effect where attention takes every layer: remove it or one of "
                "attention.layers"
            )

    def _check_experts(self) -> None:
        if self.experts and self.feed_forward_width:
            raise ValueError("feed_forward_width has no effect beside experts: set experts.width")
        if self.experts and not self.experts.width and self.experts.top_k > 4 * self.d_model:
            raise ValueError(
                f"experts.top_k {self.experts.top_k} leaves each no channel of 4 d_model {4 * self.d_model}: "
                "set experts.width"
            )


class TransformerModel(Section):
    kind: Literal["transformer"]
    d_model: Annotated[int, Field(ge=16)] = 192
    n_layers: Count = 4
    n_heads: Count = 4
    feed_forward_width: Count | None = None
    """Channels of a feed-forward layer; null: 4 d_model."""

    @model_validator(mode="after")
    def _fits(self) -> TransformerModel:
        _check_heads(self.d_model, self.n_heads, rotary=True)
        return self


class GRUModel(Section):
    kind: Literal["gru"]
    d_model: Annotated[int, Field(ge=16)] = 192
    n_layers: Count = 4
    feed_forward_width: Count | None = None
    """Channels of a feed-forward layer; null: 4 d_model."""


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


def _fault_of(check: Callable[[], None]) -> str | None:
    try:
        check()
    except ValueError as error:
        return str(error)
    return None


def check_stack(
    n_layers: int,
    attention: WindowedAttention | None,
    halting: Halting | None,
    multiscale: Multiscale | None,
) -> None:
    """ValueError where sites cannot be left out of the layers in this way."""
    if halting and multiscale:
        raise ValueError("halting and multiscale exclude each other: remove one of the two")
    if halting:
        halting.check(n_layers, attention)
    if multiscale:
        multiscale.check(n_layers)


def _check_heads(d_model: int, n_heads: int, setting: str = "n_heads", rotary: bool = False) -> None:
    if d_model % n_heads:
        raise ValueError(
            f"d_model {d_model} must be a multiple of {setting} {n_heads}: change one of the two"
        )
    if rotary and (d_model // n_heads) % 2:
        raise ValueError(
            f"d_model {d_model} over {setting} {n_heads} gives heads of odd width {d_model // n_heads}, and "
            "rotary positions need an even one: change one of the two"
        )


Model = Annotated[ResNetBKModel | TransformerModel | GRUModel | ImportModel, Field(discriminator="kind")]
