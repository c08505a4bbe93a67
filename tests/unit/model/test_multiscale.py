"""Coarse stages: what they cost, what they see, and that they are causal at every site."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bkray.config import UserError
from bkray.config.model import Halting, Multiscale, WindowedAttention
from bkray.model import ResNetBK, ResNetBKConfig

VOCABULARY = 50


def build(layers=(1, 2), factor=2, **options):
    torch.manual_seed(0)
    sizes = {
        "d_model": 32,
        "n_layers": 4,
        "n_heads": 4,
        "multiscale": Multiscale(layers=layers, factor=factor),
    }
    model = ResNetBK(ResNetBKConfig(VOCABULARY, **sizes | options))
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            if parameter.dim() > 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("factor", [2, 3, 5])
@pytest.mark.parametrize("training", [True, False])
def test_no_position_sees_its_target(factor, training):
    """Position i's target is token i + 1: changing it, for every i, changes nothing up to i."""
    model, tokens = build(factor=factor).train(training), torch.randint(VOCABULARY, (2, 13))
    expected = model(tokens)
    for target in range(1, 13):
        changed = tokens.clone()
        changed[:, target] = (changed[:, target] + 1) % VOCABULARY
        assert torch.equal(model(changed)[:, :target], expected[:, :target])


@pytest.mark.parametrize("factor", [2, 3])
def test_a_block_reaches_its_own_last_site_through_the_coarse_stage(factor):
    model, x = build(layers=(0,), n_layers=2, factor=factor), torch.randn(1, 4 * factor, 32)
    stack = model.stack
    update = stack._update(model.blocks[:1], x, stack.pooling[0])
    assert torch.equal(update[:, : factor - 1], torch.zeros_like(update[:, : factor - 1]))
    for block in range(3):
        start = (block + 1) * factor - 1
        shared = update[0, start : start + factor]
        assert torch.equal(shared, shared[:1].expand_as(shared))
        assert shared[0].abs().sum() > 0


@pytest.mark.parametrize("length", [1, 2, 7, 30])
@pytest.mark.parametrize(("layers", "factor"), [((1, 2), 2), ((0, 2), 3), ((0, 1, 3), 4)])
def test_decoding_equals_the_parallel_pass(layers, factor, length):
    model, tokens = build(layers, factor).eval(), torch.randint(VOCABULARY, (2, length))
    state, steps = model.initial_state(2), []
    with torch.no_grad():
        for i in range(length):
            logits, state = model.step(tokens[:, i], state)
            steps.append(logits)
        torch.testing.assert_close(torch.stack(steps, dim=1), model(tokens), rtol=1e-5, atol=1e-5)


def test_coarse_layers_cost_their_share():
    tokens = torch.randint(VOCABULARY, (1, 120))

    def flops(model):
        with FlopCounterMode(display=False) as counter:
            model.hidden(tokens)
        return counter.get_total_flops()

    assert flops(build((1, 2), 4)) / flops(build(multiscale=None)) == pytest.approx((2 + 2 / 4) / 4, rel=0.01)


def test_a_sequence_shorter_than_a_block_still_gives_every_parameter_a_gradient():
    model = build(factor=4)
    model(torch.randint(VOCABULARY, (2, 3))).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert torch.isfinite(model.blocks[1].mixer.gate.weight.grad).all()


def test_attention_in_a_coarse_layer_decodes_too():
    model = build(attention=WindowedAttention(layers=(1,), window=3), factor=3).eval()
    tokens = torch.randint(VOCABULARY, (2, 31))
    state, steps = model.initial_state(2), []
    with torch.no_grad():
        for i in range(31):
            logits, state = model.step(tokens[:, i], state)
            steps.append(logits)
        torch.testing.assert_close(torch.stack(steps, dim=1), model(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (1, 4)}, r"multiscale.layers \[1, 4\]: with n_layers 4 the last is 3"),
        ({"layers": (1, 1)}, "names a layer more than once"),
        ({"layers": (0, 1, 2, 3)}, "leave one out or raise n_layers"),
        ({"halting": Halting()}, "halting and multiscale exclude each other: remove one"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        build(**options)
