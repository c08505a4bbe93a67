"""Mixture of experts in the place of the feed-forward layer: every token through k of E networks.

    x (T, d) ─┬─► router ─► p = softmax (T, E) ─► the k likeliest experts of a token ────────┐
              └─► a row for each of them, sorted by expert (T k, d) ─► ReLU^2(x U_e) V_e ─► sum of p_e y_e

The Switch Transformer's layer (arXiv 2101.03961) for any k. The factor p_e is of the softmax over all
experts, so that the router learns at k = 1 too. No token is dropped: an expert takes as many as choose it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from bkray.model.arguments import at_least_float32
from bkray.model.layers import relu_squared
from bkray.model.operators import operator

Tensor = torch.Tensor

TILE = 32
"""Rows multiplied at once. Products of one shape round alike, so a token's bits depend on no other token's
choice of expert: with a product as high as an expert's share, later tokens would reach earlier logits."""


class Experts(nn.Module):
    """x (..., d) to (..., d), each token through its `top_k` experts of width f; starts as zero.

    `up` (E, d, f) and `down` (E, f, d) are stacks of matrices. In training mode a forward pass leaves the
    sums of the load-balance loss, E sum_e (share of the choices that are e) (mean p_e), times `balance`.
    """

    def __init__(self, d_model: int, count: int, top_k: int, width: int, balance: float) -> None:
        super().__init__()
        self.top_k, self.balance = top_k, balance
        self.router = nn.Linear(d_model, count, bias=False)
        self.up = nn.Parameter(torch.empty(count, d_model, width).uniform_(-1, 1) / math.sqrt(d_model))
        self.down = nn.Parameter(torch.zeros(count, width, d_model))

    def forward(self, x: Tensor) -> Tensor:
        x_Td = x.flatten(0, -2)
        with torch.autocast(x.device.type, enabled=False):
            p_TE = F.linear(*at_least_float32(x_Td, self.router.weight)).softmax(-1)
        p_Tk, chosen_Tk = p_TE.topk(self.top_k)
        counts_E = F.one_hot(chosen_Tk, p_TE.shape[1]).sum((0, 1))
        if self.training:
            self._report(p_TE, counts_E)
        y_Tkd = self._chosen_outputs(x_Td, chosen_Tk, counts_E)
        return (p_Tk.unsqueeze(-1) * y_Tkd).sum(1).view(x.shape)

    def _chosen_outputs(self, x_Td: Tensor, chosen_Tk: Tensor, counts_E: Tensor) -> Tensor:
        by_expert = chosen_Tk.flatten().argsort(stable=True)
        by_token = by_expert.argsort()
        rows = x_Td.unsqueeze(1).expand(-1, self.top_k, -1).flatten(0, 1)
        rows = _Permute.apply(rows, by_expert, by_token)
        rows = expert_products(relu_squared(expert_products(rows, self.up, counts_E)), self.down, counts_E)
        return _Permute.apply(rows, by_token, by_expert).unflatten(0, (-1, self.top_k))

    def _report(self, p_TE: Tensor, counts_E: Tensor) -> None:
        self.measured = {"busiest_expert": counts_E.max() / counts_E.sum()}
        if self.top_k < len(counts_E):  # with every expert chosen the loss is constant
            sums = torch.stack([counts_E / self.top_k, p_TE.sum(0)])
            self.site_sums = {"balance_loss": (sums, len(p_TE))}

    def of_means(self, means_2E: Tensor) -> Tensor:
        """The load-balance loss of the experts' shares of the choices and of their mean p."""
        load_E, p_E = means_2E
        return self.balance * len(load_E) * (load_E * p_E).sum()


def expert_products(x_MC: Tensor, matrices_ECD: Tensor, counts_E: Tensor) -> Tensor:
    """Rows x (M, C), sorted by expert, each times its expert's matrix: (M, D), in the dtype of a product.

    `counts` (E,) says how many rows each expert has; they sum to M. An expert without rows gets a gradient of
    zeros.
    """
    device = x_MC.device.type
    dtype = torch.promote_types(x_MC.dtype, matrices_ECD.dtype)
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    return _products(x_MC.to(dtype), matrices_ECD.to(dtype), counts_E)


class _Permute(torch.autograd.Function):
    """Rows x (M, C) in the order given; the inverse takes the gradient back, autograd would add rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return g.index_select(0, inverse), None, None


@operator("bkray::expert_products")
def _products(x: Tensor, matrices: Tensor, counts: Tensor) -> Tensor:
    y = x.new_empty(x.shape[0], matrices.shape[2])
    shares, tile = counts.tolist(), min(TILE, x.shape[0])
    for rows, matrix, out in zip(x.split(shares), matrices, y.split(shares), strict=True):
        if len(rows):
            tiles = F.pad(rows, (0, 0, 0, -len(rows) % tile)).unflatten(0, (-1, tile))
            products = torch.bmm(tiles, matrix.expand(len(tiles), -1, -1))
            out.copy_(products.flatten(0, 1)[: len(rows)])
    return y


@operator("bkray::expert_products_backward")
def _products_backward(g: Tensor, x: Tensor, matrices: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and matrices."""
    d_x, d_matrices = torch.empty_like(x), torch.empty_like(matrices)
    shares = counts.tolist()
    parts = zip(g.split(shares), x.split(shares), d_x.split(shares), matrices, d_matrices, strict=True)
    for g_rows, rows, d_rows, matrix, d_matrix in parts:
        torch.mm(g_rows, matrix.T, out=d_rows)
        torch.mm(rows.T, g_rows, out=d_matrix)
    return d_x, d_matrices


@_products.register_fake
def _(x: Tensor, matrices: Tensor, counts: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], matrices.shape[2])


@_products_backward.register_fake
def _(g: Tensor, x: Tensor, matrices: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(matrices)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_products_backward(g.contiguous(), *ctx.saved_tensors), None


_products.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.bkray.expert_products)
def _forward_flops(
    x_shape: tuple[int, ...], matrices_shape: tuple[int, ...], *others: Any, **keywords: Any
) -> int:
    return 2 * x_shape[0] * math.prod(matrices_shape[1:])


@register_flop_formula(torch.ops.bkray.expert_products_backward)
def _backward_flops(
    g_shape: tuple[int, ...],
    x_shape: tuple[int, ...],
    matrices_shape: tuple[int, ...],
    *others: Any,
    **keywords: Any,
) -> int:
    return 4 * x_shape[0] * math.prod(matrices_shape[1:])
