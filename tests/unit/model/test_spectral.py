"""Spectral mixing: what it equals, its gradients, and what it must never depend on."""

import threading

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bkray.config import UserError
from bkray.model import operator_of, spectral_mix, spectral_scan

BACKENDS = ["reference", "chunked", "numba"]


def gates(batch, length, channels, dtype=torch.float64, seed=0):
    random = torch.Generator().manual_seed(seed)
    f = torch.rand(batch, length, channels, generator=random, dtype=dtype).clamp(0, 0.999)
    omega = 0.05 + 3 * torch.rand(batch, length, channels, generator=random, dtype=dtype)
    return f, omega, torch.randn(batch, length, channels, generator=random, dtype=dtype)


def dense_mix(f, omega, x):
    """W diag(1/u) x of one channel (N,), from inverses of the leading blocks of `operator_of`."""
    a, b, eta = (t[0, :, 0] for t in operator_of(f[None, :, None], omega[None, :, None]))
    h = torch.zeros(len(x), dtype=torch.complex128)
    for i in range(len(x)):
        coupling = torch.diag(b[1 : i + 1], 1) if i else torch.zeros(1, 1, dtype=b.dtype)
        block = torch.diag(torch.complex(a, -eta)[: i + 1]) + coupling + coupling.T
        row = torch.linalg.inv(block)[-1]
        weights = row * eta[: i + 1].sqrt() / row[-1].imag.sqrt()
        h[i] = (weights * torch.exp(-1j * (torch.pi - omega[: i + 1])) * x[: i + 1]).sum()
    return h


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 2, 3, 17, 128])
def test_equals_dense_resolvent_of_its_operator(length, backend):
    f, omega, x = gates(2, length, 2)
    h = spectral_mix(f, omega, x, backend=backend)
    for batch in range(2):
        for channel in range(2):
            expected = dense_mix(*(t[batch, :, channel] for t in (f, omega, x)))
            torch.testing.assert_close(h[batch, :, channel], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 2, 7])
def test_gradients_of_scan(length, backend, normalise):
    f, omega, x = gates(2, length, 3)
    inputs = [t.requires_grad_() for t in (f, omega.cos(), omega.sin(), x)]
    assert torch.autograd.gradcheck(
        lambda *t: spectral_scan(*t, normalise=normalise, backend=backend), inputs
    )


def test_gradients_reach_broadcast_gates():
    inputs = [t.requires_grad_() for t in gates(2, 5, 3)]
    f, omega, x = inputs
    small = [f[:, :, :1].detach().requires_grad_(), omega[0, 0].detach().requires_grad_(), x]
    assert torch.autograd.gradcheck(lambda *t: torch.view_as_real(spectral_mix(*t)), small)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 5), (3, 101, 17), (1, 4096, 16), (2, 31, 600)])
@pytest.mark.parametrize("normalise", [True, False])
def test_backends_agree_in_float32(shape, normalise):
    f, omega, x = (t.float().requires_grad_() for t in gates(*shape))
    results = []
    for backend in BACKENDS:
        h = spectral_scan(f, omega.cos(), omega.sin(), x, normalise=normalise, backend=backend)
        loss = (h[0] * 0.3 + h[1] ** 2).sum()
        results.append([*h, *torch.autograd.grad(loss, [f, omega, x])])
    for loop, *others in zip(*results, strict=True):
        for other in others:
            torch.testing.assert_close(loop, other, rtol=2e-4, atol=2e-4 * float(loop.detach().abs().max()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_site_zero_has_no_past(backend):
    f, omega, x = gates(2, 6, 3)
    spoiled = f.clone()
    spoiled[:, 0] = torch.nan
    h = spectral_mix(spoiled, omega, x, backend=backend)
    assert torch.equal(h, spectral_mix(f, omega, x, backend=backend))
    assert torch.equal(h[:, 0].real, x[:, 0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_never_sees_the_future(backend):
    old = gates(2, 50, 300, torch.float32)
    new = [
        torch.cat([t[:, :30], u[:, 30:]], dim=1)
        for t, u in zip(old, gates(2, 50, 300, torch.float32, seed=1), strict=True)
    ]
    before, after = (spectral_mix(*t, backend=backend) for t in (old, new))
    assert torch.equal(before[:, :30], after[:, :30])
    assert not torch.equal(before[:, 30], after[:, 30])


def forward_and_backward(seed=0):
    f, omega, x = (t.requires_grad_() for t in gates(3, 40, 600, torch.float32, seed))
    h = spectral_scan(f, omega.cos(), omega.sin(), x, backend="numba")
    return [*h, *torch.autograd.grad((h[0] * h[1]).sum(), [f, omega, x])]


def test_same_bits_on_any_number_of_threads():
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(forward_and_backward())
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_may_be_entered_from_several_threads_at_once():
    expected = forward_and_backward()
    results = {}

    def work(name):
        results[name] = [forward_and_backward() for _ in range(5)][-1]

    workers = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 4
    for result in results.values():
        assert all(torch.equal(a, b) for a, b in zip(expected, result, strict=True))


def test_long_memories_over_a_long_sequence():
    """f close to 1 over 65,536 sites: float32 against float64."""
    f, omega, x = gates(1, 65536, 3, torch.float32)
    f = 1 - 1e-3 * (1.1 - f)
    exact = spectral_mix(f.double(), omega.double(), x.double(), backend="numba")
    for backend in ("numba", "chunked"):
        rough = spectral_mix(f, omega, x, backend=backend)
        assert (rough - exact).norm() / exact.norm() < 1e-5


def test_keeps_only_inputs_and_output_for_backward():
    f, omega, x = (t.requires_grad_() for t in gates(2, 64, 8, torch.float32))
    cos, sin = omega.cos(), omega.sin()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        h = spectral_scan(f, cos, sin, x)
    known = {t.data_ptr() for t in (f, cos, sin, x, *h)}
    assert {t.data_ptr() for t in kept} == known


def test_non_contiguous_input():
    f, omega, x = gates(2, 13, 6)
    turned = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (f, omega, x)]
    assert not turned[0].is_contiguous()
    assert torch.equal(spectral_mix(*turned), spectral_mix(f, omega, x))


def test_autocast_and_bfloat16_compute_in_float32():
    f, omega, x = gates(2, 64, 8, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = spectral_mix(f, omega, x)
    assert torch.equal(under_autocast, spectral_mix(f, omega, x))
    halves = [t.bfloat16() for t in (0.9 * f, omega, x)]
    assert torch.equal(spectral_mix(*halves), spectral_mix(*(t.float() for t in halves)))


def test_operator_is_well_formed_for_the_compiler_and_the_flop_counter():
    f, omega, x = (t.requires_grad_() for t in gates(1, 4, 2))
    for backend in BACKENDS:
        torch.library.opcheck(
            torch.ops.bkray.spectral_scan.default, (f, omega.cos(), omega.sin(), x, True, backend)
        )
    with FlopCounterMode(display=False) as forward:
        h = spectral_scan(f, omega.cos(), omega.sin(), x)
    with FlopCounterMode(display=False) as backward:
        (h[0] + h[1]).sum().backward()
    assert forward.get_total_flops() == 13 * x.numel()
    assert backward.get_total_flops() == 29 * x.numel()


def test_bad_arguments_are_named():
    f, omega, x = gates(2, 5, 3)
    with pytest.raises(UserError, match=r"f must be in \[0, 1\)"):
        spectral_mix(f + 1, omega, x)
    with pytest.raises(UserError, match=r"omega must be in \(0, pi\)"):
        spectral_mix(f, omega * 0, x)
    with pytest.raises(UserError, match="x must be finite"):
        spectral_mix(f, omega, x * torch.inf)
    with pytest.raises(UserError, match="at least one site"):
        spectral_mix(f, omega, x[:, :0])
    with pytest.raises(UserError, match="auto, reference"):
        spectral_mix(f, omega, x, backend="cuda")
    with pytest.raises(UserError, match=r"not available.*meta"):
        spectral_scan(f.to("meta"), f.to("meta"), f.to("meta"), x.to("meta"), backend="numba")
