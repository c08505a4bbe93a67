"""Experts: the same as a loop over tokens, a router that learns, bits that depend on no other token."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bkray.model.experts import TILE, Experts, expert_products


def lively(count=4, top_k=2, d_model=16, width=24, balance=0.01):
    torch.manual_seed(0)
    experts = Experts(d_model, count, top_k, width, balance)
    torch.nn.init.normal_(experts.down)
    return experts


def by_token(experts, x_Td):
    """What the layer computes, one token and one expert after the other."""
    p_TE, rows = experts.router(x_Td).softmax(-1), []
    for x, p in zip(x_Td, p_TE, strict=True):
        best = p.topk(experts.top_k).indices.tolist()
        rows.append(sum(p[e] * (F.relu(x @ experts.up[e]) ** 2 @ experts.down[e]) for e in best))
    return torch.stack(rows)


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("tokens", [1, 5, 3 * TILE + 7])
def test_it_equals_a_loop_over_tokens(top_k, tokens):
    experts = lively(top_k=top_k).double()
    x = torch.randn(tokens, 16, dtype=torch.float64)
    pulled = torch.randn(tokens, 16, dtype=torch.float64)
    results = []
    for run in (experts, lambda x: by_token(experts, x)):
        y = run(x)
        results.append([y, *torch.autograd.grad((y * pulled).sum(), list(experts.parameters()))])
    for ours, slow in zip(*results, strict=True):
        torch.testing.assert_close(ours, slow)


def test_gradients_are_exact():
    experts, x = lively(d_model=3, width=4).double(), torch.randn(6, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(experts, (x.requires_grad_(),))


@pytest.mark.parametrize("shape", [(192, 768), (192, 192), (32, 64)])
def test_a_row_has_the_same_bits_whatever_the_other_rows_choose(shape):
    torch.manual_seed(0)
    rows, matrices = torch.randn(70, shape[0]), torch.randn(4, *shape)
    fixed, results = torch.arange(4), []
    for others in (torch.zeros(66, dtype=torch.long), *torch.randint(4, (6, 66))):
        chosen = torch.cat([fixed, others])
        order = chosen.argsort(stable=True)
        products = expert_products(rows[order], matrices, F.one_hot(chosen, 4).sum(0))
        results.append(products[order.argsort()][:4])
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_the_router_learns_from_the_loss_with_a_single_expert_a_token():
    experts = lively(top_k=1)
    experts(torch.randn(20, 16)).square().sum().backward()
    assert experts.router.weight.grad.abs().sum() > 0


def test_an_expert_that_no_token_chooses_gets_zeros():
    experts = lively(top_k=1)
    experts(torch.randn(1, 16).expand(9, -1)).square().sum().backward()
    by_expert = experts.up.grad.abs().sum((1, 2))
    assert (by_expert > 0).sum() == 1
    assert (by_expert == 0).sum() == 3


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_balance_loss_is_least_where_the_load_is_even(top_k):
    experts = lively(top_k=top_k, d_model=4, balance=1.0)
    even, uneven = torch.eye(4), torch.eye(4)[:1].expand(4, -1)
    with torch.no_grad():
        turn = torch.eye(4) + 0.5 * torch.eye(4).roll(1, 0)
        experts.router.weight.copy_(4 * turn)  # token i goes to expert i, then to the one after it
    losses = []
    for x in (even, uneven):
        experts(x)
        sums, sites = experts.site_sums["balance_loss"]
        losses.append(experts.of_means(sums / sites).item())
    assert losses[0] == pytest.approx(1.0)
    assert losses[1] > 1.5
    assert float(experts.measured["busiest_expert"]) == pytest.approx(1 / top_k)


def test_a_token_costs_the_flops_of_its_experts_alone():
    experts = lively(count=8, top_k=2)
    with FlopCounterMode(display=False) as counter:
        experts(torch.randn(10, 16)).sum().backward()
    counts = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    assert counts["bkray.expert_products"] == 2 * 2 * 10 * 2 * 16 * 24
    assert counts["bkray.expert_products_backward"] == 2 * counts["bkray.expert_products"]
