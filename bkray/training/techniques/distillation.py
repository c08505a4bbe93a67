"""Knowledge distillation: the student learns what a teacher thinks possible (arXiv 1503.02531).

    teachers ─► mean of their probabilities ─► k largest: ids, log-probabilities ─► cached
                                                                                      │
    student's logits ─► (1 - w) cross-entropy + w T² KL(teacher || student) ◄─────────┘

Only k numbers of V are cached, so both distributions are first coarsened to k + 1 outcomes at temperature 1:
the teachers' k tokens and one rest, which holds what the others have together. Then both are softened,

    P_i = p_i^(1/T) / Σ_j p_j^(1/T),    Q_i likewise,    i, j over the k tokens and the rest,

and compared by T² KL(P || Q), whose gradient has the size of cross-entropy's at any T. The rest is softened
as the one outcome that it is: how V - k softened tokens would add up, k numbers cannot tell. The divergence
is zero where the student gives the same k + 1 probabilities, at T = 1 no more than that of the whole
distributions, and with k = V, where there is no rest, that of Hinton et al.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bkray.config.distillation import Distillation
from bkray.difficulty.model_score import hidden_states, scoring_dtype, window_logits

_LEAST_REST = 1e-6  # float32 knows 1 - Σ p to about 1e-7, and its logarithm must stay finite


@torch.no_grad()
def soft_targets(
    teachers: Sequence[nn.Module], tokens_WN1: np.ndarray, k: int, dtype: torch.dtype | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k most probable tokens of every target position, in falling order, and their log-probabilities.

    They are those of the mean of the teachers' probabilities at temperature 1: ids (W, N, k) int64, nats
    (W, N, k) float16. A window's are computed from that window alone. `dtype` is that of the matrix products,
    by default `scoring_dtype`. All teachers are on one device.
    """
    device = next(teachers[0].parameters()).device
    dtype = dtype or scoring_dtype(device)
    for teacher in teachers:
        teacher.eval()
    windows = torch.as_tensor(np.ascontiguousarray(tokens_WN1), dtype=torch.int64, device=device)
    ids, nats = [], []
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        states = zip(*(hidden_states(teacher, windows[:, :-1]) for teacher in teachers), strict=True)
        for window, hiddens in zip(windows, states, strict=True):
            logits = [
                window_logits(teacher, hidden_Nd, window[:-1])
                for teacher, hidden_Nd in zip(teachers, hiddens, strict=True)
            ]
            chunks = zip(*logits, strict=True)
            best = [_mean_log_probs(chunk).topk(k) for chunk in chunks]
            ids.append(torch.cat([each.indices for each in best]))
            nats.append(torch.cat([each.values for each in best]).half())
    if not ids:
        empty = (0, tokens_WN1.shape[1] - 1, k)
        return np.zeros(empty, dtype=np.int64), np.zeros(empty, dtype=np.float16)
    return torch.stack(ids).cpu().numpy(), torch.stack(nats).cpu().numpy()


def _mean_log_probs(logits_nV: Sequence[Tensor]) -> Tensor:
    """The logarithm of the mean of the teachers' probabilities, (n, V); it underflows nowhere."""
    log_probs_TnV = torch.stack([logits.log_softmax(-1) for logits in logits_nV])
    return log_probs_TnV.logsumexp(0) - math.log(len(log_probs_TnV))


def distillation_loss(log_probs_MV: Tensor, ids_Mk: Tensor, teacher_Mk: Tensor, temperature: float) -> Tensor:
    """T² KL(P || Q) of every row, nats (M,): see the formula above.

    `log_probs` are the student's at temperature 1, `teacher` the log-probabilities of the tokens `ids`.
    """
    student_Mk = log_probs_MV.gather(1, ids_Mk)
    if ids_Mk.shape[1] < log_probs_MV.shape[1]:
        student_Mk, teacher_Mk = _with_rest(student_Mk), _with_rest(teacher_Mk)
    teacher, student = ((each / temperature).log_softmax(-1) for each in (teacher_Mk, student_Mk))
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(-1)


def _with_rest(log_probs_Mk: Tensor) -> Tensor:
    """(M, k + 1): the last is the logarithm of what the k probabilities leave, at least 1e-6."""
    rest_M1 = 1.0 - log_probs_Mk.exp().sum(-1, keepdim=True)
    return torch.cat([log_probs_Mk, rest_M1.clamp(min=_LEAST_REST).log()], dim=-1)


def distilled_losses(
    logits_MV: Tensor,
    targets_M: Tensor,
    ids_Mk: Tensor,
    teacher_Mk: Tensor,
    temperature: float,
    weight: float,
) -> tuple[Tensor, Tensor]:
    """Cross-entropies (M,) whose gradient is that of (1 - w) cross-entropy + w T² KL, and the latter term."""
    log_probs_MV = logits_MV.float().log_softmax(-1)
    losses_M = F.nll_loss(log_probs_MV, targets_M, reduction="none")
    soft_M = distillation_loss(log_probs_MV, ids_Mk, teacher_Mk, temperature)
    mixed_M = (1.0 - weight) * losses_M + weight * soft_M
    return losses_M.detach() + (mixed_M - mixed_M.detach()), soft_M.detach()


class Distiller:
    """`distilled_losses` with the settings of a recipe."""

    def __init__(self, settings: Distillation) -> None:
        self.settings = settings
        self.loss = 0.0
        """Mean T² KL of this rank's last batch, nats."""

    def __call__(
        self, logits_MV: Tensor, targets_M: Tensor, soft_targets: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Losses (M,), the rows being the targets of `soft_targets`: ids, log-probabilities (B, N, k) each.

        Raises ValueError without any.
        """
        if soft_targets is None:
            raise ValueError("training.distillation needs the soft targets of the windows")
        ids, teacher = (each.flatten(0, 1) for each in soft_targets)
        losses_M, soft_M = distilled_losses(
            logits_MV, targets_M, ids, teacher, self.settings.temperature, self.settings.weight
        )
        self.loss = float(soft_M.mean())
        return losses_M
