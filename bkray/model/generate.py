"""Sampling text: by `step` where the model streams, else by running the context again for every token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from bkray.config import UserError


def generate(
    model: nn.Module,
    prompt_ids: Sequence[int],
    max_tokens: int,
    temperature: float,
    seed: int,
    stop_id: int | None = None,
    context: int | None = None,
) -> list[int]:
    """Up to `max_tokens` ids sampled after `prompt_ids`; they end with `stop_id` where it is drawn.

    A model without `step` reads the last `context` ids (None: all) for every token. The model runs in eval
    mode and is left in the mode in which it came. Raises UserError for an empty prompt and for a
    temperature that is not positive.
    """
    return list(generate_each(model, prompt_ids, max_tokens, temperature, seed, stop_id, context))


@torch.no_grad()
def generate_each(
    model: nn.Module,
    prompt_ids: Sequence[int],
    max_tokens: int,
    temperature: float,
    seed: int,
    stop_id: int | None = None,
    context: int | None = None,
) -> Iterator[int]:
    """The ids of `generate`, one after the other as they are drawn."""
    if not prompt_ids:
        raise UserError("prompt_ids is empty: give at least one token to go on from")
    if not temperature > 0:
        raise UserError(f"temperature must be positive, not {temperature}")
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    was_training = model.training
    model.eval()
    try:
        read = _streaming(model, device) if hasattr(model, "step") else _rereading(model, device, context)
        for token in prompt_ids:
            logits = read(token)
        for number in range(max_tokens):
            if number:
                logits = read(token)
            shares = torch.softmax(logits().double().cpu() / temperature, dim=-1)
            token = int(torch.multinomial(shares, 1, generator=generator))
            yield token
            if token == stop_id:
                return
    finally:
        model.train(was_training)


def _streaming(model: Any, device: torch.device) -> Callable[[int], Callable[[], torch.Tensor]]:
    state = model.initial_state(1)

    def read(token: int) -> Callable[[], torch.Tensor]:
        nonlocal state
        logits_BV, state = model.step(torch.tensor([token], device=device), state)
        return lambda: logits_BV[0]

    return read


def _rereading(
    model: nn.Module, device: torch.device, context: int | None
) -> Callable[[int], Callable[[], torch.Tensor]]:
    seen: list[int] = []

    def read(token: int) -> Callable[[], torch.Tensor]:
        seen.append(token)
        return lambda: model(torch.tensor([seen[-context:] if context else seen], device=device))[0, -1]

    return read
