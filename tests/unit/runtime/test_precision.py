"""Which precision a stage takes for all its windows. No cluster needed."""

import torch

from bkray.runtime.precision import common_dtype, said


def test_machines_of_which_one_lacks_bfloat16_compute_in_float32():
    assert common_dtype([torch.bfloat16] * 2) == torch.bfloat16
    assert common_dtype([torch.bfloat16, torch.float32]) == torch.float32
    assert said(torch.bfloat16) == {"dtype": "bfloat16"}
