import math

import pytest
import torch

from bkray.selection import MEASURES, dropout_masks, entropy, least_confidence, margin, variation_ratio


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


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES.keys())
def test_a_token_of_probability_zero_does_not_count(measure):
    logits = torch.randn(2, 6, 11, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([logits, torch.full((2, 6, 3), -math.inf)], dim=-1)
    torch.testing.assert_close(measure(padded), measure(logits))


def test_variation_ratio_is_the_share_of_passes_that_say_otherwise():
    votes = torch.tensor([[[4, 1, 2]], [[4, 1, 3]], [[4, 1, 0]], [[4, 2, 5]]])  # four passes, three positions
    assert variation_ratio(votes).item() == pytest.approx((0 + 0.25 + 0.75) / 3)
    assert variation_ratio(votes, torch.tensor([[0, 9, -100]])).item() == pytest.approx(0.125)


def test_masks_drop_their_share_keep_the_mean_and_repeat_themselves():
    masks = dropout_masks(200, 300, 0.25, seed=5)
    assert masks.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert (masks == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert masks.mean().item() == pytest.approx(1.0, abs=0.01)
    assert torch.equal(masks, dropout_masks(200, 300, 0.25, seed=5))
    assert not torch.equal(masks, dropout_masks(200, 300, 0.25, seed=6))
    assert not torch.equal(masks[0], masks[1])
