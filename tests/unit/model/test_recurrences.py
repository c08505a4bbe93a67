"""The chunked recursions against the loops, for every way in which a sequence can fill its chunks."""

import pytest
import torch

from bkray.model.recurrences import TORCH, adjoint

LENGTHS = [1, 2, 3, 4, 5, 16, 17, 101]


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("length", LENGTHS)
def test_linear_chunks_equal_the_loop(length):
    a, b = random(2, length, 3, 1), random(2, length, 3, 5)
    a[:, 0] = torch.nan  # there is nothing before the first site
    results = [TORCH[name].linear(a, b) for name in ("reference", "chunked")]
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", LENGTHS)
def test_adjoint_is_the_transpose(length):
    """<g, h(B)> = <lambda(g), B> for every B."""
    a, b, g = random(2, length, 3), random(2, length, 3, seed=1), random(2, length, 3, seed=2)
    for recurrences in TORCH.values():
        out, back = recurrences.linear(a, b), adjoint(recurrences.linear, a, g)
        torch.testing.assert_close((g.conj() * out).sum(), (back.conj() * b).sum())


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("eta", [1.0, 1e-3])
def test_leading_chunks_equal_the_loop(length, eta):
    a, b = random(2, length, 3).real, random(2, length, 3, seed=1).real
    results = [TORCH[name].leading(a, b, torch.full_like(a, eta)) for name in ("reference", "chunked")]
    torch.testing.assert_close(*results, rtol=1e-10 / eta, atol=0)


@pytest.mark.parametrize("site", [1, 9, 10, 11, 99, 100])
def test_a_later_site_changes_no_earlier_bit(site):
    a, b = random(1, 101, 7).to(torch.complex64), random(1, 101, 7, seed=1).to(torch.complex64)
    other_a, other_b = a.clone(), b.clone()
    other_a[:, site:] *= 3
    other_b[:, site:] -= 1
    eta = torch.full_like(a.real, 0.1)
    for linear, leading in TORCH.values():
        assert torch.equal(linear(a, b)[:, :site], linear(other_a, other_b)[:, :site])
        before, after = leading(a.real, b.real, eta), leading(other_a.real, other_b.real, eta)
        assert torch.equal(before[:, :site], after[:, :site])
        assert not torch.equal(before[:, site], after[:, site])
