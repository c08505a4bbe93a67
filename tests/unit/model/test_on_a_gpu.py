"""The models on a GPU: what the CPU gives, causal to the bit, decoding as the parallel pass."""

import pytest
import torch
from torch.nn import functional as F

from bkray.config.training import Training
from bkray.training.hardware import products
from tests.unit.model import interpreted_triton
from tests.unit.model.test_models import KINDS, VOCABULARY, lively, objective

if not torch.cuda.device_count():
    pytest.skip("no CUDA device: nothing runs on one", allow_module_level=True)


def test_kernels_agree_with_the_reference():
    interpreted_triton.main("cuda", lengths=(1, 33, 1000))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_the_cpus(kind):
    """In float64, so that no rounding opens an expert or a gate on one device alone; angles are float32."""
    tokens, results = torch.randint(VOCABULARY, (3, 130)), []
    for device in ("cpu", "cuda"):
        model = lively(KINDS[kind]).double().to(device)
        logits = model(tokens.to(device))
        objective(model, logits).backward()
        results.append([logits, *(parameter.grad for parameter in model.parameters())])
    for there, here in zip(*results, strict=True):
        torch.testing.assert_close(here.cpu(), there, rtol=1e-6, atol=1e-6 * float(there.abs().max()))


@pytest.mark.parametrize("length", [3, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_a_future_token_changes_no_past_bit(kind, length):
    model = lively(KINDS[kind]).cuda()
    tokens = torch.randint(VOCABULARY, (2, length), device="cuda")
    past = length // 2
    changed = tokens.clone()
    changed[:, past] = (changed[:, past] + 1) % VOCABULARY
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :past], after[:, :past])
    assert not torch.equal(before[:, past:], after[:, past:])


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_equals_the_parallel_pass(kind):
    model = lively(KINDS[kind]).cuda().eval()
    tokens = torch.randint(VOCABULARY, (3, 37), device="cuda")
    state, steps = model.initial_state(3), []
    with torch.no_grad():
        for i in range(tokens.shape[1]):
            logits, state = model.step(tokens[:, i], state)
            steps.append(logits)
        expected = model(tokens)
    scale = float(expected.abs().max())
    torch.testing.assert_close(torch.stack(steps, dim=1), expected, rtol=0, atol=1e-5 * scale)


def test_products_of_a_bf16_run_take_tf32_and_those_of_others_do_not():
    one = torch.randn(300, 300, device="cuda")
    exact = one.double() @ one.double()

    def error():
        return float((one @ one - exact).abs().max() / exact.abs().max())

    with products(Training(precision="bf16"), one.device):
        assert 1e-5 < error() < 1e-2
    with products(Training(), one.device):
        assert error() < 1e-6
    assert error() < 1e-6


@pytest.mark.parametrize("kind", ["spectral", "gated", "potential", "transformer"])
def test_it_compiles_to_one_graph_under_autocast(kind):
    model, tokens = lively(KINDS[kind]).cuda(), torch.randint(VOCABULARY, (2, 64), device="cuda")
    losses = []
    for run in (model, torch.compile(model, fullgraph=True)):
        with torch.autocast("cuda", torch.bfloat16):
            logits = run(tokens)
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())
        loss.backward()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
