import math

import pytest
import torch

from bkray.training.divergence.finite import first_non_finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_bad_tensor_is_named(value):
    bad = torch.ones(2, 3)
    bad[1, 1] = value
    assert first_non_finite([("a", torch.ones(2)), ("b", bad), ("c", bad)]) == "b"


def test_what_is_finite_is_let_through():
    largest = torch.full((100,), torch.finfo(torch.float32).max)
    kinds = [largest, largest.half().clamp(max=6e4), torch.ones(2, dtype=torch.int64), torch.ones(0)]
    assert first_non_finite((str(number), tensor) for number, tensor in enumerate(kinds)) is None
    assert first_non_finite([]) is None
