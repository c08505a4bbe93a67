import pytest
import torch
from torch import nn

from bkray.corpus.tokenizer import train_tokenizer
from bkray.runtime.evaluation import Written, write


@pytest.mark.parametrize(
    ("tokens", "seconds", "shown"),
    [
        (101, 0.5, "101 tokens, 200 tokens a second (12 tokens of prompt read in 0.30 s)"),
        (1, 0.0, "12 tokens of prompt read in 0.30 s"),
    ],
)
def test_the_speed_leaves_out_the_prompt(tokens, seconds, shown):
    assert Written("text", 12, tokens, 0.3, seconds).speed == shown


class SixPositions(nn.Module):
    """A model of an own class: no `step`, and a table of positions that runs out."""

    def __init__(self, vocabulary):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, 8), nn.Embedding(6, 8)

    def forward(self, tokens_BN):
        places = self.places(torch.arange(tokens_BN.shape[1]))
        return (self.tokens(tokens_BN) + places) @ self.tokens.weight.T


def test_a_model_with_positions_for_a_window_writes_beyond_it():
    tokenizer = train_tokenizer(["the scan writes as far as it is asked to"], 300)
    torch.manual_seed(0)
    model = SixPositions(tokenizer.get_vocab_size())
    assert write(model, tokenizer, "the scan writes as far", 30, 1.0, 0, window=6).tokens > 6
    with pytest.raises(IndexError):
        write(model, tokenizer, "the scan writes as far", 30, 1.0, 0, window=40)
