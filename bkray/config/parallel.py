"""The recipe's `training.gradient_compression`: what ranks send each other in place of gradients."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from bkray.config.section import Count, Section, named


class HalfPrecision(Section):
    """Gradients travel in 16 bits and are added up in them."""

    kind: Literal["fp16", "bf16"]


class PowerSGD(Section):
    """Matrices travel as a product of two thin ones, with error feedback (arXiv 1905.13727)."""

    kind: Literal["powersgd"]
    rank: Count = 4
    start: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of the steps, one at least, in which gradients travel whole first."""


GradientCompression = Annotated[HalfPrecision | PowerSGD, Field(discriminator="kind"), BeforeValidator(named)]
"""`gradient_compression: fp16` is short for `gradient_compression: {kind: fp16}`."""
