"""Difficulty and uncertainty of windows under a model, all from one pass through its body.

    windows (W, N + 1) ─► body, some windows a pass ─► hidden (N, d) ─► head, a chunk at a time ─► loss and
                                                            │            the asked measures: (W,) each
                                                            └─► mean: the window's embedding

A window's score is independent of its neighbours, to the last bit. Matrix products of another height may
round differently, so every pass has as many windows, a last one being filled up, and its rows end where a
product's tiles do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bkray.config import UserError
from bkray.model.head import GPU_LOGITS, chunked_logits
from bkray.model.language_model import Stack
from bkray.selection import MEASURES, variation_ratio

_CHUNK = 256  # positions whose logits exist at a time
_PASS_TOKENS = 4096  # of a pass through the body: a small model gains by long products, and few calls a token
_PASS_FLOPS = 1e11  # a large one has them with one window, and would be long at more
_TILE = 16  # rows that CPU products take together; what is left over at the end they may round otherwise


@torch.no_grad()
def score_windows(
    model: nn.Module,
    tokens_WN1: np.ndarray,
    measures: Sequence[str] = (),
    each_token: bool = False,
    *,
    embedding: bool = False,
    masks_TD: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, np.ndarray]:
    """Mean `loss` in nats a token, and the named measures of `bkray.selection`: (W,) float32 each.

    With `each_token` also `token_loss`, the loss of every target: (W, N) float32. With `embedding` also that,
    the mean of the final states: (W, D) float32. With masks of `dropout_masks` also `variation_ratio` over
    their thinned copies of the final states: (W,) float32, for one more product of the head for each.

    `dtype` is that of the matrix products, by default `scoring_dtype`; logits are summed up in float32. A
    model with `hidden(tokens_BN)` and `head(hidden)` never has the logits of a whole window at once, of
    another they exist once, in the model's own precision, and as float32 a chunk at a time; raises UserError
    where `embedding` or masks are asked of another.
    """
    model.eval()
    device = next(model.parameters()).device
    dtype = dtype or scoring_dtype(device)
    if (embedding or masks_TD is not None) and not has_hidden(model):
        raise UserError(
            f"{type(model).__name__} has no hidden(tokens) and head(hidden), which selection.diversity and "
            "selection kind variation_ratio need: give it both, or select otherwise"
        )
    windows = torch.as_tensor(np.ascontiguousarray(tokens_WN1), dtype=torch.int64, device=device)
    rows = []
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        for window, hidden_Nd in zip(windows, hidden_states(model, windows[:, :-1]), strict=True):
            row = _logit_scores(
                window_logits(model, hidden_Nd, window[:-1]), window[1:], measures, each_token
            )
            if embedding and hidden_Nd is not None:
                row["embedding"] = hidden_Nd.float().mean(0)
            if masks_TD is not None and hidden_Nd is not None:
                row["variation_ratio"] = _variation_ratio(model, hidden_Nd, masks_TD.to(device))
            rows.append(row)
    names = ["loss", *measures]
    names += [name for name in ("token_loss", "embedding", "variation_ratio") if rows and name in rows[0]]
    return {name: _stacked([row[name] for row in rows]) for name in names}


def perplexity(loss_W: np.ndarray) -> np.ndarray:
    """exp(loss a token): (W,). It orders windows exactly as the loss does; only its scale is another.

    Infinite for a loss whose exponential its type does not hold, above 88 nats in float32.
    """
    with np.errstate(over="ignore"):
        return np.exp(loss_W)


def scoring_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies matrices in it, else float32.

    The operators of BK-Core, softmax and sums stay in float32.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
    return torch.bfloat16 if native else torch.float32


def has_hidden(model: nn.Module) -> bool:
    """Whether the model gives its final states, and logits of any slice of them."""
    return callable(getattr(model, "hidden", None)) and callable(getattr(model, "head", None))


def windows_a_pass(model: nn.Module, window: int) -> int:
    """How many windows of `window` tokens go through a model's body at once: a power of two.

    One where passes would differ by the windows in them: where their rows end within a tile, and where the
    model's stack leaves out sites.
    """
    if window % _TILE or any(isinstance(m, Stack) and type(m) is not Stack for m in model.modules()):
        return 1
    weights = sum(parameter.numel() for parameter in model.parameters())
    windows = min(_PASS_TOKENS, int(_PASS_FLOPS // (2 * weights))) // window
    return 1 << max(0, windows.bit_length() - 1)


def hidden_states(model: nn.Module, tokens_WN: Tensor) -> Iterator[Tensor | None]:
    """The final states (N, d) of each window, the same bits whatever the others; None of a model without."""
    if not has_hidden(model):
        yield from [None] * len(tokens_WN)
        return
    together = windows_a_pass(model, tokens_WN.shape[1])
    for windows_PN in tokens_WN.split(together):
        filled_PN = F.pad(windows_PN, (0, 0, 0, together - len(windows_PN)))
        yield from model.hidden(filled_PN)[: len(windows_PN)]  # type: ignore[operator]


def window_logits(model: nn.Module, hidden_Nd: Tensor | None, tokens_N: Tensor) -> Iterator[Tensor]:
    """The float32 logits of one window, or of its final states where it has any, some positions at a time."""
    if hidden_Nd is None:
        logits_NV = model(tokens_N[None])[0]
        return (logits_nV.float() for logits_nV in logits_NV.split(_positions(logits_NV)))
    head: Callable[[Tensor], Tensor] = model.head  # type: ignore[assignment]
    return chunked_logits(head, hidden_Nd, _positions(head(hidden_Nd[:1])))


def _positions(logits_nV: Tensor) -> int:
    """How many positions' logits exist at a time, of a model with such logits."""
    return max(_CHUNK, GPU_LOGITS // logits_nV.shape[-1]) if logits_nV.is_cuda else _CHUNK


def _logit_scores(
    chunks: Iterator[Tensor], targets_N: Tensor, measures: Sequence[str], each_token: bool
) -> dict[str, Tensor]:
    """The scores that come from the logits of one window, each a tensor without dimensions but token_loss."""
    losses, sums = [], dict.fromkeys(measures, torch.zeros((), device=targets_N.device))
    begin = 0
    for logits_nV in chunks:
        end = begin + len(logits_nV)
        losses.append(F.cross_entropy(logits_nV, targets_N[begin:end], reduction="none"))
        for name in measures:
            sums[name] = sums[name] + len(logits_nV) * MEASURES[name](logits_nV[None])[0]
        begin = end
    losses_N = torch.cat(losses)
    scores = {"loss": losses_N.mean(), **{name: value / len(targets_N) for name, value in sums.items()}}
    return scores | ({"token_loss": losses_N} if each_token else {})


def _variation_ratio(model: nn.Module, hidden_Nd: Tensor, masks_TD: Tensor) -> Tensor:
    votes = [
        torch.cat([logits.argmax(-1) for logits in window_logits(model, hidden_Nd * mask_D, hidden_Nd)])
        for mask_D in masks_TD
    ]
    return variation_ratio(torch.stack(votes)[:, None])[0]


def _stacked(values: list[Tensor]) -> np.ndarray:
    return torch.stack(values).float().cpu().numpy() if values else np.zeros(0, dtype=np.float32)
