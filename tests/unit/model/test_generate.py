"""generate: the same tokens by streaming and by rereading, seeded, stopped."""

import pytest
import torch
from torch import nn

from bkray.config import UserError
from bkray.model import ResNetBK, ResNetBKConfig, generate, generate_each


class Whole(nn.Module):
    """The same model without `step`; records the lengths that it was given."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.lengths = []

    def forward(self, tokens):
        self.lengths.append(tokens.shape[1])
        return self.inner(tokens)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = ResNetBK(ResNetBKConfig(vocab_size=40, d_model=32, n_layers=2, n_heads=4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def test_streaming_and_rereading_draw_the_same_tokens(model):
    streamed = generate(model, [1, 2, 3], 20, 1.0, seed=5)
    assert len(streamed) == 20
    assert generate(Whole(model), [1, 2, 3], 20, 1.0, seed=5) == streamed
    assert generate(model, [1, 2, 3], 20, 1.0, seed=6) != streamed


def test_context_limits_what_is_reread(model):
    whole = Whole(model)
    generate(whole, [1, 2, 3], 10, 1.0, seed=5, context=4)
    assert whole.lengths == [3] + [4] * 9


def test_stops_after_the_stop_token(model):
    tokens = generate(model, [1], 30, 1.0, seed=0)
    stopped = generate(model, [1], 30, 1.0, seed=0, stop_id=tokens[4])
    assert stopped == tokens[: tokens.index(tokens[4]) + 1]


def test_low_temperature_takes_the_likeliest(model):
    tokens = generate(model, [7], 5, 1e-6, seed=0)
    with torch.no_grad():
        logits = model(torch.tensor([[7, *tokens]]))[0]
    assert logits[:-1].argmax(-1).tolist() == tokens


def test_leaves_the_mode_and_refuses_bad_arguments(model):
    model.train()
    generate(model, [1], 2, 1.0, seed=0)
    assert model.training
    assert generate(model, [1], 0, 1.0, seed=0) == []
    with pytest.raises(UserError, match="prompt_ids"):
        generate(model, [], 2, 1.0, seed=0)
    with pytest.raises(UserError, match="temperature"):
        generate(model, [1], 2, 0.0, seed=0)


def test_tokens_come_one_by_one_and_an_abandoned_text_leaves_the_mode(model):
    whole = Whole(model).train()
    each = generate_each(whole, [1, 2, 3], 20, 1.0, seed=5)
    first = [next(each), next(each)]
    assert whole.lengths == [3, 4], "no token is computed before it is asked for"
    each.close()
    assert whole.training
    assert torch.is_grad_enabled()
    assert generate(model, [1, 2, 3], 2, 1.0, seed=5) == first
