"""What the mixers compute, against slow and obvious forms."""

import pytest
import torch
from torch.nn import functional as F

from bkray.config.model import WindowedAttention
from bkray.model import ResNetBK, ResNetBKConfig, resolvent_mix
from bkray.model.mixers import Attention, ConvolvedAttention, DiagonalMixer, GRUMixer, PotentialMixer
from bkray.model.mixers.attention import _windowed


@pytest.mark.parametrize("length", [6, 7, 12, 31])
@pytest.mark.parametrize("window", [2, 5, 6])
def test_windowed_attention_is_attention_with_a_band(length, window):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 4, dtype=torch.float64) for _ in range(3))
    site = torch.arange(length)
    band = (site[None] <= site[:, None]) & (site[None] > site[:, None] - window)
    torch.testing.assert_close(
        _windowed(q, k, v, window), F.scaled_dot_product_attention(q, k, v, attn_mask=band)
    )


def test_a_window_as_long_as_the_text_changes_nothing():
    torch.manual_seed(0)
    mixer, x = Attention(8, 2, window=16), torch.randn(1, 16, 8)
    torch.nn.init.normal_(mixer.output.weight)
    whole = mixer(x)
    mixer.window = None
    assert torch.equal(mixer(x), whole)


def test_attention_in_resnet_bk_sees_its_neighbours_through_a_convolution():
    torch.manual_seed(0)
    config = ResNetBKConfig(vocab_size=9, d_model=16, n_layers=2, attention=WindowedAttention(layers=(1,)))
    mixer, x = ResNetBK(config).blocks[1].mixer, torch.randn(2, 11, 16)
    assert isinstance(mixer, ConvolvedAttention)
    torch.nn.init.normal_(mixer.output.weight)
    plain = Attention(16, 4, window=64)
    plain.load_state_dict(mixer.state_dict(), strict=False)
    torch.testing.assert_close(mixer(x), plain(x))  # it starts as attention alone
    torch.nn.init.normal_(mixer.convolution.taps)
    padded, taps = F.pad(x, (0, 0, 3, 0)), mixer.convolution.taps[:, 0].T
    z = sum(padded[:, k : k + 11] * taps[k] for k in range(4))
    torch.testing.assert_close(mixer(x), plain(z))


def operator_matrix(v, b, eta):
    """H - i eta of one head: v and eta (N,), b a number."""
    n = len(v)
    matrix = torch.diag(torch.complex(v, -eta))
    off = torch.full((n - 1,), float(b), dtype=matrix.dtype)
    return matrix + torch.diag(off, 1) + torch.diag(off, -1)


def test_potential_mixer_applies_the_resolvent_of_its_operator():
    torch.manual_seed(0)
    mixer, x = PotentialMixer(8, 2).double(), torch.randn(1, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        mixer.output.weight.copy_(torch.eye(8))
        mixer.psi.normal_()
        mixer.operator.coupling.copy_(torch.tensor([0.7, 1.3]))
        z = mixer.convolution(x)
        v, b, eta = mixer.operator(z)
        value = mixer.value(z).unflatten(-1, (2, 4))
        expected = torch.zeros(1, 9, 2, 4, dtype=torch.complex128)
        for head in range(2):
            for site in range(9):
                block = slice(0, site + 1)
                green = torch.linalg.inv(operator_matrix(v[0, block, head], b[head], eta[0, block, head]))[-1]
                weights = eta[0, block, head].sqrt() * green / green[-1].imag.sqrt()
                expected[0, site, head] = weights @ value[0, block, head].to(weights.dtype)
        read = (expected.flatten(-2) * torch.exp(1j * mixer.psi)).real
        torch.testing.assert_close(mixer(x), read * F.silu(mixer.gate(z)))


def test_diagonal_features_stay_within_the_unit_circle():
    torch.manual_seed(0)
    mixer = DiagonalMixer(8, 4)
    torch.nn.init.normal_(mixer.operator.potential, std=30)
    seen = []
    mixer.output.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    mixer(torch.randn(2, 50, 8))
    real, imaginary = seen[0].chunk(2, dim=-1)
    assert (torch.hypot(real, imaginary) <= 1 + 1e-5).all()
    assert torch.isfinite(seen[0]).all()


@pytest.mark.parametrize("mixer", ["spectral", "gated", "potential", "diagonal"])
def test_the_longest_memory_that_is_allowed_can_be_started_with(mixer):
    longest = 1000.0 if mixer in ("potential", "diagonal") else 1e6
    model = ResNetBK(ResNetBKConfig(20, mixer=mixer, longest_memory=longest))
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model(torch.randint(20, (1, 30))).isfinite().all()


def test_a_gru_recurs_in_float32_whatever_the_products_around_it():
    mixer, x = GRUMixer(16), torch.randn(2, 9, 16)
    torch.nn.init.normal_(mixer.output.weight)
    seen = []
    mixer.gru.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output[0])))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = mixer(x.bfloat16())
    ((before, after),) = seen
    assert (before.dtype, after.dtype, mixed.dtype) == (torch.float32, torch.float32, torch.bfloat16)
    assert torch.equal(after, mixer.gru(before)[0])


def test_the_free_chain_forgets_as_slowly_as_it_is_set_to():
    """An impulse is carried on with about exp(-eta/2) a site while v = 0 and b = 1."""
    torch.manual_seed(0)
    mixer = PotentialMixer(4, 4)
    with torch.no_grad():
        for parameter in (mixer.operator.potential, mixer.operator.absorption):
            parameter.zero_()
        mixer.operator.absorption_bias.fill_(float(torch.tensor(0.05 - 1e-3).expm1().log()))
        mixer.value.weight.copy_(torch.eye(4))
    x = torch.zeros(1, 200, 4)
    x[:, 100] = 1.0
    with torch.no_grad():
        mixed = resolvent_mix(*mixer.operator(x), x.unsqueeze(-1))[0, :, 0, 0].abs()
    assert float((mixed[160] / mixed[120]).log() / -40) == pytest.approx(0.025, rel=0.05)
