import math

import pytest
import torch

from bkray.selection import MEASURES, entropy, least_confidence, margin


def test_closed_forms():
    uniform = torch.zeros(2, 3, 8)
    torch.testing.assert_close(entropy(uniform), torch.full((2,), math.log(8)))
    torch.testing.assert_close(least_confidence(uniform), torch.full((2,), math.log(8)))
    torch.testing.assert_close(margin(uniform), torch.zeros(2))
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25]]]))
    assert entropy(logits).item() == pytest.approx(1.5 * math.log(2))
    assert least_confidence(logits).item() == pytest.approx(math.log(2))
    assert margin(logits).item() == pytest.approx(-math.log(2))


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES.keys())
def test_a_flatter_distribution_is_more_uncertain(measure):
    logits = torch.randn(1, 5, 11, generator=torch.Generator().manual_seed(0))
    assert measure(logits / 4) > measure(logits)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES.keys())
def test_padding_does_not_count(measure):
    logits = torch.randn(2, 6, 11, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(2, 6, dtype=torch.int64)
    targets[:, 4:] = -100
    torch.testing.assert_close(measure(logits, targets), measure(logits[:, :4]))
