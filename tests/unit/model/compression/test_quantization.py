import pytest
import torch
from torch import nn

from bkray.config import UserError
from bkray.config.model import MixtureOfExperts
from bkray.model import GRU, GRUConfig, ResNetBK, ResNetBKConfig
from bkray.model.compression import dequantize, quantize, quantize_model, restore


@pytest.mark.parametrize(
    ("bits", "group", "columns", "packed", "scales"),
    [
        (8, None, 50, (6, 50), (6, 1)),
        (4, 32, 50, (6, 32), (6, 2)),
        (4, 64, 128, (6, 64), (6, 2)),
        (4, 64, 9, (6, 32), (6, 1)),
    ],
)
def test_every_weight_is_off_by_half_a_step_of_its_own_scale(bits, group, columns, packed, scales):
    torch.manual_seed(0)
    weight = torch.randn(6, columns) * torch.logspace(-2, 1, 6)[:, None]
    whole, scale = quantize(weight, bits, group)
    assert whole.shape == packed
    assert scale.shape == scales
    assert whole.element_size() == 1
    step = scale.float().repeat_interleave(group or columns, dim=1)[:, :columns]
    assert ((dequantize(whole, scale, columns) - weight).abs() <= 0.502 * step).all()


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 32)])
@pytest.mark.parametrize("size", [1e-5, 1e-6, 1e4])
def test_small_and_large_weights_keep_their_precision(bits, group, size):
    weight = size * torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    error = dequantize(*quantize(weight, bits, group), 64) - weight
    assert error.norm() < 0.2 * weight.norm()


@pytest.mark.parametrize(("bits", "group", "largest"), [(8, None, 127), (4, 4, 7)])
def test_what_lies_on_the_grid_stays(bits, group, largest):
    weight = 0.25 * torch.tensor([[-largest, 0, 1, largest], [largest, -1, 2, -2], [0, 0, 0, 0]])
    assert torch.equal(dequantize(*quantize(weight, bits, group), 4), weight)


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 32)])
def test_models_come_back_with_rounded_matrices_and_all_else_exact(bits, group):
    torch.manual_seed(0)
    experts = ResNetBK(ResNetBKConfig(50, 32, 2, 4, experts=MixtureOfExperts(count=3, width=64)))
    for model in (ResNetBK(ResNetBKConfig(50, 32, 2, 4)), experts, GRU(GRUConfig(50, 32, 2))):
        state = {
            name: torch.randn_like(p) if name.endswith(".down") else p
            for name, p in model.state_dict().items()
        }
        packed = quantize_model(model, state, bits, group)
        restored = restore(packed, {name: tensor.shape for name, tensor in state.items()})
        assert restored.keys() == state.keys()
        rounded = {name for name in state if not torch.equal(restored[name], state[name])}
        stacks = {n for n in state if n.endswith((".feed_forward.up", ".feed_forward.down"))}
        own = stacks | {n for n, p in state.items() if p.ndim == 2 and p.abs().sum() > 0}
        assert rounded == own
        assert packed["embedding.weight.int8"].dtype == torch.int8
        for name in rounded:
            assert (restored[name] - state[name]).norm() < 0.2 * state[name].norm(), name


@pytest.mark.parametrize(
    ("bits", "group", "message"), [(3, None, "8 or 4"), (4, None, "even"), (8, 32, "none")]
)
def test_what_cannot_be_is_refused(bits, group, message):
    with pytest.raises(UserError, match=message):
        quantize(torch.ones(2, 2), bits, group)


def test_a_model_without_matrices_is_refused():
    with pytest.raises(UserError, match="Embedding has no linear layer"):
        quantize_model(nn.Embedding(2, 2), {"weight": torch.ones(2, 2)}, 8)
