"""The O(N) recursions against dense inverses."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from bkray.config import UserError
from bkray.model import operator_of, resolvent_diagonal, resolvent_mix

LENGTHS = [1, 2, 3, 17, 128]
BACKENDS = ["reference", "chunked", "numba"]


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


CASES = [*((length, 17) for length in (1, 2, 1009, 65536)), *((101, heads) for heads in (1, 5, 16))]


def diagonal_and_gradients(chain, backend):
    chain = [t.requires_grad_() for t in chain]
    left = resolvent_diagonal(*chain, backend=backend)
    return [left.detach(), *torch.autograd.grad((left.real + 2 * left.imag).sum(), chain)]


@pytest.mark.parametrize("eta", [1.0, 0.1, 1e-2, 1e-3])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize(("length", "heads"), CASES)
def test_float32_is_bounded_and_backends_agree(length, heads, scale, eta):
    a, b, _ = operator(length, batch=1, heads=heads, dtype=torch.float32)
    chain = (scale * a, b, torch.full_like(a, eta))
    exact = diagonal_and_gradients([t.double() for t in chain], "numba")
    for backend in BACKENDS if length <= 101 else BACKENDS[1:]:
        left, *gradients = diagonal_and_gradients([t.clone() for t in chain], backend)
        assert (left.imag > 0).all()
        assert (left.abs() <= 1 / eta * (1 + 1e-5)).all()
        assert (left - exact[0]).norm() / exact[0].norm() < 1e-6 + 2e-8 / eta
        for gradient, expected in zip(gradients, exact[1:], strict=True):
            assert (gradient - expected).norm() <= (2e-6 + 1e-7 / eta) * expected.norm()


def test_the_loop_agrees_over_a_long_sequence():
    a, b, _ = operator(65536, batch=1, heads=1, dtype=torch.float32)
    results = [resolvent_diagonal(a, b, torch.tensor(0.01), backend=backend) for backend in BACKENDS]
    for other in results[1:]:
        assert (results[0] - other).norm() / other.norm() < 1e-5


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("eta", [1.0, 1e-3])
def test_mixing_backends_agree_in_float32(scale, eta):
    a, b, _ = operator(101, heads=5, dtype=torch.float32)
    inputs = [scale * a, b, torch.full_like(a, eta), torch.randn(2, 101, 5, 4)]
    outputs = {}
    for backend in BACKENDS:
        leaves = [t.clone().requires_grad_() for t in inputs]
        y = resolvent_mix(*leaves, backend=backend)
        gradients = torch.autograd.grad((y.real + y.imag**2).sum(), leaves)
        outputs[backend] = [y.detach(), *gradients]
    for backend in BACKENDS[1:]:
        for loop, other in zip(outputs["reference"], outputs[backend], strict=True):
            assert (loop - other).norm() <= 1e-5 / eta * loop.norm()


@pytest.mark.parametrize("backend", BACKENDS)
def test_unused_coupling_is_ignored(backend):
    a, b, eta = operator(9)
    x = torch.randn(2, 9, 3, 2, dtype=torch.float64)
    spoiled = b.clone()
    spoiled[:, 0] = torch.nan
    spoiled.requires_grad_()

    def mixed(*chain, backend):
        return resolvent_mix(*chain, x, backend=backend)

    for function, others in ((resolvent_diagonal, {}), (resolvent_diagonal, {"causal": False}), (mixed, {})):
        result = function(a, spoiled, eta, backend=backend, **others)
        assert torch.equal(result, function(a, b, eta, backend=backend, **others))
        (gradient,) = torch.autograd.grad(result.abs().sum(), spoiled)
        assert torch.equal(gradient[:, 0], torch.zeros_like(gradient[:, 0]))
        assert torch.isfinite(gradient).all()


def peak_bytes(function):
    """The most that `function` holds at one time beyond what existed before, by torch's allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        kept = function()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    del kept
    return peak


def test_diagonal_takes_five_tensors_of_extra_memory():
    """Two for L, three for the gradients; nothing else of that size, checks of the values included."""
    chain = [t.requires_grad_() for t in operator(4096, heads=16, dtype=torch.float32)]
    g = torch.randn(chain[0].shape, dtype=torch.complex64)
    one = chain[0].numel() * chain[0].element_size()

    def run():
        left = resolvent_diagonal(*chain, backend="numba")
        return left, torch.autograd.grad(left, chain, g)

    run()
    assert 4.9 * one < peak_bytes(run) < 5.1 * one


def test_mixing_keeps_only_inputs_and_output_for_backward():
    inputs = [t.requires_grad_() for t in (*operator(8), torch.randn(2, 8, 3, 2, dtype=torch.float64))]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = resolvent_mix(*inputs)
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in (*inputs, y)}


def test_operators_are_well_formed_for_the_compiler_and_the_flop_counter():
    chain = [t.requires_grad_() for t in operator(4)]
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    for backend in BACKENDS:
        torch.library.opcheck(torch.ops.bkray.resolvent_diagonal.default, (*chain, backend))
        torch.library.opcheck(torch.ops.bkray.resolvent_mix.default, (*chain, x, backend))
    with FlopCounterMode(display=False) as counter:
        resolvent_diagonal(*chain).abs().sum().backward()
    assert counter.get_total_flops() == (10 + 23) * chain[0].numel()
    with FlopCounterMode(display=False) as counter:
        y = resolvent_mix(*chain, x)
    assert counter.get_total_flops() == 8 * x.numel()
    with FlopCounterMode(display=False) as counter:
        y.abs().sum().backward()
    assert counter.get_total_flops() == 30 * x.numel()


@pytest.mark.parametrize("causal", [True, False])
def test_compiles_into_one_graph(causal):
    chain = [t.requires_grad_() for t in operator(9)]
    x = torch.randn(2, 9, 3, 4, dtype=torch.float64, requires_grad=True)

    def function(a, b, eta, x):
        return resolvent_diagonal(a, b, eta, causal=causal).unsqueeze(-1) + resolvent_mix(a, b, eta, x)

    results = []
    for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        y = run(*chain, x)
        results.append([y, *torch.autograd.grad(y.abs().sum(), [*chain, x])])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled)


def test_autocast_and_bfloat16_compute_in_float32():
    a, b, eta = operator(33, dtype=torch.float32)
    x = torch.randn(2, 33, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        diagonal, mixed = resolvent_diagonal(a, b, eta), resolvent_mix(a, b, eta, x)
        both = resolvent_diagonal(a, b, eta, causal=False)
    assert torch.equal(diagonal, resolvent_diagonal(a, b, eta))
    assert torch.equal(both, resolvent_diagonal(a, b, eta, causal=False))
    assert torch.equal(mixed, resolvent_mix(a, b, eta, x))
    halves = [t.bfloat16() for t in (a, b, eta, x)]
    assert torch.equal(resolvent_mix(*halves), resolvent_mix(*(t.float() for t in halves)))


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
    with pytest.raises(UserError, match="auto, reference"):
        resolvent_diagonal(a, b, eta, backend="fpga")
    with pytest.raises(UserError, match="eta of shape"):
        resolvent_diagonal(a, b, eta[:, :3])
    with pytest.raises(UserError, match="at least one site"):
        resolvent_diagonal(a[:, :0], b, eta)


@pytest.mark.parametrize("backend", ["reference", "chunked", "numba"])
def test_the_extremes_that_are_allowed_have_a_resolvent_and_others_are_refused(backend):
    one = torch.ones(1, 5, 2)
    extremes = [(0.0, 0.0, 1.1e-19), (9.2e18, 0.0, 1e-3), (-9.2e18, 0.0, 1e3), (0.0, 0.0, 9.2e18)]
    extremes += [(0.0, 3e9, 1.0), (9e18, 9e7, 1e-3), (-9e18, 1.0, 1.2e-19)]
    for a, b, eta in extremes:
        chain = [value * one for value in (a, b, eta)]
        exact = resolvent_diagonal(*(tensor.double() for tensor in chain), backend="reference")
        found = resolvent_diagonal(*chain, backend=backend)
        torch.testing.assert_close(found.to(exact.dtype), exact, rtol=1e-4, atol=0)
    with pytest.raises(UserError, match=r"eta must be positive, above 1.1e-19, and below 9.2e\+18, not"):
        resolvent_diagonal(0 * one, one, 1e-23 * one, backend=backend)
    with pytest.raises(UserError, match=r"eta must be positive, above 1.1e-19, and below 9.2e\+18, not"):
        resolvent_diagonal(0 * one, one, 1e19 * one, backend=backend)
    with pytest.raises(UserError, match=r"a must be finite, within \+-9.2e\+18"):
        resolvent_diagonal(1e20 * one, one, one, backend=backend)
    with pytest.raises(UserError, match=r"b\^2 over the smaller eta of its two sites must be below 9.2e\+18"):
        resolvent_diagonal(0 * one, 1e10 * one, one, backend=backend)


@pytest.mark.parametrize("length", LENGTHS)
def test_operator_of_has_unit_modulus_resolvent(length):
    f = torch.rand(2, length, 3, dtype=torch.float64)
    omega = 0.1 + 2.9 * torch.rand(2, length, 3, dtype=torch.float64)
    left = resolvent_diagonal(*operator_of(f, omega))
    torch.testing.assert_close(left, torch.exp(1j * (torch.pi - omega)), rtol=1e-11, atol=1e-11)
