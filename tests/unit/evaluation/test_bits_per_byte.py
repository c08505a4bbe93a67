"""Window losses agree with the plain formula, use little memory, and add up to bits per byte."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bkray.config import UserError
from bkray.evaluation.bits_per_byte import HeldOut, window_nats

VOCAB = 11


class Plain(nn.Module):
    """A causal model with nothing but logits; it notes the shape of everything it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, 6)
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(6, VOCAB)
        self.logit_shapes: list[tuple[int, ...]] = []

    def body(self, tokens_BN):
        return self.dropout(self.embedding(tokens_BN).cumsum(1))

    def project(self, hidden_BND):
        logits_BNV = self.output(hidden_BND)
        self.logit_shapes.append(tuple(logits_BNV.shape))
        return logits_BNV

    def forward(self, tokens_BN):
        return self.project(self.body(tokens_BN))


class Split(Plain):
    """The same with its body and head apart."""

    def hidden(self, tokens_BN):
        self.hidden_shape = tuple(tokens_BN.shape)
        return self.body(tokens_BN)

    def head(self, hidden_BND):
        return self.project(hidden_BND)


@pytest.fixture(params=[Plain, Split])
def model(request):
    torch.manual_seed(0)
    return request.param()


@pytest.fixture
def tokens():
    return torch.randint(VOCAB, (4, 9), generator=torch.Generator().manual_seed(1), dtype=torch.int32)


def test_matches_cross_entropy_in_eval_mode(model, tokens):
    nats_B = window_nats(model, tokens)
    model.eval()
    logits_BNV = model(tokens[:, :-1]).double()
    expected_BN = F.cross_entropy(logits_BNV.transpose(1, 2), tokens[:, 1:].long(), reduction="none")
    assert nats_B.dtype == torch.float64
    assert not nats_B.requires_grad
    torch.testing.assert_close(nats_B, expected_BN.sum(1).detach(), rtol=1e-5, atol=0)


def test_logits_exist_for_one_window_at_a_time(model, tokens):
    window_nats(model, tokens)
    assert model.logit_shapes == [(1, 8, VOCAB)] * 4
    if isinstance(model, Split):
        assert model.hidden_shape == (4, 8)


def test_every_module_returns_to_its_own_mode(model, tokens):
    model.train()
    model.embedding.eval()
    window_nats(model, tokens)
    assert (model.training, model.dropout.training, model.embedding.training) == (True, True, False)


def test_modes_return_when_the_model_fails(model):
    model.train()
    with pytest.raises(IndexError):
        window_nats(model, torch.full((1, 3), VOCAB))
    assert model.training


@pytest.mark.parametrize("shape", [(9,), (3, 1)])
def test_refuses_what_holds_no_target(model, shape):
    with pytest.raises(ValueError, match="expected"):
        window_nats(model, torch.zeros(shape, dtype=torch.int64))


def test_uniform_model_costs_the_log_of_the_vocabulary(tokens):
    model = Plain()
    nn.init.zeros_(model.output.weight)
    nn.init.zeros_(model.output.bias)
    held_out = HeldOut(float(window_nats(model, tokens).sum()), tokens=32, bytes=64, windows=4)
    assert held_out.perplexity == pytest.approx(VOCAB)
    assert held_out.nats_per_token == pytest.approx(math.log(VOCAB))
    assert held_out.bits_per_byte == pytest.approx(math.log2(VOCAB) / 2)


def test_parts_add_up_and_weigh_by_their_bytes():
    parts = [HeldOut(10.0, 5, 20, 1), HeldOut(50.0, 10, 30, 2)]
    whole = sum(parts, HeldOut())
    assert whole == HeldOut(60.0, 15, 50, 3)
    assert whole.as_dict("test") == {
        "bits_per_byte": pytest.approx(60 / math.log(2) / 50),
        "nats_per_token": 4.0,
        "perplexity": pytest.approx(math.exp(4.0)),
        "split": "test",
        "nats": 60.0,
        "tokens": 15,
        "bytes": 50,
        "windows": 3,
    }


def test_a_diverged_model_is_not_hidden():
    assert math.isnan(HeldOut(math.nan, 5, 20, 1).bits_per_byte)
    assert HeldOut(1e6, 1, 1, 1).perplexity == math.inf


def test_no_held_out_text_names_the_mend():
    with pytest.raises(UserError, match=r"corpus\.validation"):
        HeldOut().bits_per_byte  # noqa: B018
