"""The O(N) recursions against dense inverses."""

import pytest
import torch

from bkray.config import UserError
from bkray.model import operator_of, resolvent_diagonal, resolvent_mix

LENGTHS = [1, 2, 3, 17, 128]
BACKENDS = ["reference", "numba"]


def operator(length, batch=2, heads=3, seed=0, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    a = torch.randn(batch, length, heads, generator=random, dtype=dtype)
    b = torch.randn(batch, length, heads, generator=random, dtype=dtype)
    eta = 0.1 + torch.rand(batch, length, heads, generator=random, dtype=dtype)
    return a, b, eta


def dense(a, b, eta):
    """(H - i eta)^-1 of one chain (N,), by inversion."""
    chain = torch.diag(torch.complex(a, -eta))
    if len(a) > 1:
        coupling = torch.diag(b[1:], 1)
        chain = chain + coupling + coupling.T
    return torch.linalg.inv(chain)


def each_chain(function, *tensors):
    """`function` of every (batch, head) chain of (B, N, H) tensors, stacked back to (B, N, H)."""
    batch, _, heads = tensors[0].shape
    return torch.stack(
        [
            torch.stack([function(*(t[i, :, j] for t in tensors)) for j in range(heads)], dim=-1)
            for i in range(batch)
        ]
    )


def causal_rows(a, b, eta):
    """Row i of the leading (i+1) x (i+1) block's resolvent, zero-padded: (N, N)."""
    rows = torch.zeros(len(a), len(a), dtype=torch.complex128)
    for i in range(len(a)):
        rows[i, : i + 1] = dense(a[: i + 1], b[: i + 1], eta[: i + 1])[-1]
    return rows


def ward(a, b, eta):
    """The Ward-normalised causal resolvent (N, N)."""
    rows = causal_rows(a, b, eta)
    return rows * eta.sqrt() / rows.diagonal().imag.sqrt()[:, None]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", LENGTHS)
def test_diagonal_equals_dense_inverse(length, backend):
    chain = operator(length)
    leading = each_chain(lambda *t: causal_rows(*t).diagonal(), *chain)
    full = each_chain(lambda *t: dense(*t).diagonal(), *chain)
    torch.testing.assert_close(resolvent_diagonal(*chain, backend=backend), leading, rtol=1e-11, atol=1e-11)
    both_sides = resolvent_diagonal(*chain, causal=False, backend=backend)
    torch.testing.assert_close(both_sides, full, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", LENGTHS)
def test_mix_equals_dense_ward_resolvent(length, backend):
    a, b, eta = operator(length)
    x = torch.randn(2, length, 3, 5, dtype=torch.float64)
    mixed = resolvent_mix(a, b, eta, x, backend=backend)
    for batch in range(2):
        for head in range(3):
            weights = ward(*(t[batch, :, head] for t in (a, b, eta)))
            expected = weights @ x[batch, :, head].to(torch.complex128)
            torch.testing.assert_close(mixed[batch, :, head], expected, rtol=1e-11, atol=1e-11)


def test_ward_weights_have_unit_norm():
    for chain in zip(*(t[0].T for t in operator(17)), strict=True):
        torch.testing.assert_close(ward(*chain).abs().square().sum(1), torch.ones(17, dtype=torch.float64))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_gradients_of_diagonal(length, causal, backend):
    chain = [t.requires_grad_() for t in operator(length)]

    def parts(*chain):
        return torch.view_as_real(resolvent_diagonal(*chain, causal=causal, backend=backend))

    assert torch.autograd.gradcheck(parts, chain)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 2, 7])
def test_gradients_of_mix(length, backend):
    x = torch.randn(2, length, 3, 2, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (*operator(length), x)]
    assert torch.autograd.gradcheck(lambda *t: torch.view_as_real(resolvent_mix(*t, backend=backend)), inputs)


@pytest.mark.parametrize("eta", [1.0, 1e-3])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("length", [1, 2, 1009])
def test_float32_is_bounded_and_backends_agree(length, scale, eta):
    a, b, _ = operator(length, heads=5, dtype=torch.float32)
    eta = torch.tensor(eta)
    compiled = resolvent_diagonal(scale * a, b, eta, backend="numba")
    loop = resolvent_diagonal(scale * a, b, eta, backend="reference")
    exact = resolvent_diagonal((scale * a).double(), b.double(), eta.double(), backend="reference")
    assert (compiled.imag > 0).all()
    assert (compiled.abs() <= 1 / eta * (1 + 1e-5)).all()
    for result in (compiled, loop):
        assert (result - exact).abs().max() / exact.abs().max() < 1e-6 / eta


def test_unused_coupling_is_ignored():
    a, b, eta = operator(9)
    spoiled = b.clone()
    spoiled[:, 0] = torch.nan
    assert torch.equal(resolvent_diagonal(a, b, eta), resolvent_diagonal(a, spoiled, eta))


def test_broadcast_and_non_contiguous_inputs():
    a, b, eta = operator(11)
    turned = a.transpose(0, 1).contiguous().transpose(0, 1)
    wide = resolvent_diagonal(turned, b[:1, :, :1], eta[:, :1])
    narrow = resolvent_diagonal(
        a, b[:1, :, :1].expand_as(a).contiguous(), eta[:, :1].expand_as(a).contiguous()
    )
    assert not turned.is_contiguous()
    assert torch.equal(wide, narrow)


@pytest.mark.parametrize("backend", BACKENDS)
def test_causal_form_does_not_see_the_future_and_the_other_does(backend):
    chain = operator(33, dtype=torch.float32)
    changed = [t.clone() for t in chain]
    for tensor in changed:
        tensor[:, 20:] += 1
    x = torch.randn(2, 33, 3, 4)
    before, after = (resolvent_diagonal(*t, backend=backend)[:, :20] for t in (chain, changed))
    assert torch.equal(before, after)
    before, after = (resolvent_mix(*t, x, backend=backend)[:, :20] for t in (chain, changed))
    assert torch.equal(before, after)
    before, after = (resolvent_diagonal(*t, causal=False, backend=backend)[:, :20] for t in (chain, changed))
    assert not torch.equal(before[:, 19], after[:, 19])


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_non_finite_input_raises(which, value):
    inputs = [*operator(5), torch.ones(2, 5, 3, 2, dtype=torch.float64)]
    inputs[which][0, 2, 0] = value
    with pytest.raises(UserError, match="must be"):
        resolvent_mix(*inputs)


def test_bad_arguments_are_named():
    a, b, eta = operator(5)
    with pytest.raises(UserError, match="eta must be positive"):
        resolvent_diagonal(a, b, -eta)
    with pytest.raises(UserError, match="reference or numba"):
        resolvent_diagonal(a, b, eta, backend="fpga")
    with pytest.raises(UserError, match="eta of shape"):
        resolvent_diagonal(a, b, eta[:, :3])
    with pytest.raises(UserError, match="at least one site"):
        resolvent_diagonal(a[:, :0], b, eta)


@pytest.mark.parametrize("length", LENGTHS)
def test_operator_of_has_unit_modulus_resolvent(length):
    f = torch.rand(2, length, 3, dtype=torch.float64)
    omega = 0.1 + 2.9 * torch.rand(2, length, 3, dtype=torch.float64)
    left = resolvent_diagonal(*operator_of(f, omega))
    torch.testing.assert_close(left, torch.exp(1j * (torch.pi - omega)), rtol=1e-11, atol=1e-11)
