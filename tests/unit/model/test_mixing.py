"""The fused mixing against its composition, and its gradients."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bkray.model.mixing import real_mixing, spectral_mixing


def inputs(batch, length, heads, per, dtype=torch.float64, seed=0):
    """z, forget, gate, head, tangent, psi."""
    random = torch.Generator().manual_seed(seed)
    wide = [torch.randn(batch, length, heads * per, generator=random, dtype=dtype) for _ in range(3)]
    head, tangent = (
        0.1 + torch.rand(*shape, generator=random, dtype=dtype)
        for shape in (
            (batch, length, heads),
            (heads * per,),
        )
    )
    psi = torch.randn(heads * per, generator=random, dtype=dtype)
    return [t.requires_grad_() for t in (*wide, head, tangent, psi)]


MIXINGS = [(spectral_mixing, 6), (real_mixing, 3)]


@pytest.mark.parametrize(("mixing", "count"), MIXINGS)
@pytest.mark.parametrize("backend", ["chunked", "numba"])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_gradients(mixing, count, backend, length):
    assert torch.autograd.gradcheck(lambda *t: mixing(*t, backend=backend), inputs(2, length, 2, 3)[:count])


@pytest.mark.parametrize(("mixing", "count"), MIXINGS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 31, 16, 12), (1, 2048, 1, 100), (3, 33, 5, 1)])
def test_fused_equals_composed(mixing, count, shape):
    tensors = inputs(*shape, dtype=torch.float32)[:count]
    with torch.no_grad():
        tensors[1].mul_(8)  # some gates at both clamps, where 1 - f^2 has few digits left in float32
    results = []
    for backend in ("reference", "numba"):
        y = mixing(*tensors, backend=backend)
        results.append([y, *torch.autograd.grad(y.square().sum(), tensors)])
    for composed, fused in zip(*results, strict=True):
        assert (composed - fused).norm() <= 1e-4 * composed.norm()


@pytest.mark.parametrize(("mixing", "count", "parts"), [(spectral_mixing, 6, 2), (real_mixing, 3, 1)])
def test_keeps_only_inputs_and_the_state_for_backward(mixing, count, parts):
    """The state is complex with phases, real without."""
    tensors, kept = inputs(2, 64, 2, 4, torch.float32)[:count], []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        mixing(*tensors, backend="numba")
    given = {t.data_ptr() for t in tensors}
    others = {t.data_ptr(): t.numel() for t in kept if t.data_ptr() not in given}
    assert sum(others.values()) == parts * tensors[0].numel()


def test_no_phase_is_the_limit_of_small_phases():
    z, forget, gate, head, tangent, psi = inputs(2, 40, 2, 3)
    y = spectral_mixing(z, forget, gate, head, 1e-9 * tangent, 0 * psi)
    torch.testing.assert_close(y, real_mixing(z, forget, gate), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("mixing", "count"), MIXINGS)
def test_same_bits_on_any_number_of_threads(mixing, count):
    tensors, threads = inputs(3, 40, 6, 100, torch.float32)[:count], torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            y = mixing(*tensors)
            results.append([y, *torch.autograd.grad(y.square().sum(), tensors)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(("mixing", "count"), MIXINGS)
def test_never_sees_the_future(mixing, count):
    old, new = inputs(2, 50, 2, 30, torch.float32), inputs(2, 50, 2, 30, torch.float32, seed=1)
    changed = [
        torch.cat([t[:, :30], u[:, 30:]], 1) if t.dim() == 3 else t for t, u in zip(old, new, strict=True)
    ]
    for backend in ("chunked", "numba"):
        before, after = (mixing(*t[:count], backend=backend) for t in (old, changed))
        assert torch.equal(before[:, :30], after[:, :30])
        assert not torch.equal(before[:, 30], after[:, 30])


def test_operators_are_well_formed_for_the_compiler_and_the_flop_counter():
    tensors = inputs(1, 4, 2, 3)
    torch.library.opcheck(torch.ops.bkray.spectral_mixing.default, tensors)
    torch.library.opcheck(torch.ops.bkray.real_mixing.default, tensors[:3])
    for (mixing, count), flops in zip(MIXINGS, (26 + 67, 8 + 22), strict=True):
        with FlopCounterMode(display=False) as counter:
            mixing(*tensors[:count]).sum().backward()
        assert counter.get_total_flops() == flops * tensors[0].numel()
