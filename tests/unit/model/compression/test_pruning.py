import pytest
import torch
from torch import nn

from bkray.config import UserError
from bkray.config.model import Halting, MixtureOfExperts
from bkray.model import ResNetBK, ResNetBKConfig, Transformer, TransformerConfig
from bkray.model.compression import prune_feed_forward, unit_importance

TOKENS = torch.arange(120).remainder(37).view(4, 30)


@pytest.fixture(params=[(ResNetBK, ResNetBKConfig), (Transformer, TransformerConfig)])
def kind(request):
    return request.param


def built(kind, width=None):
    torch.manual_seed(0)
    model = kind[0](kind[1](40, d_model=32, n_layers=2, n_heads=4, feed_forward_width=width))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def test_channels_that_write_nothing_go_first_and_the_smaller_model_says_the_same(kind):
    model, silent = built(kind), {0: torch.arange(0, 128, 2), 1: torch.arange(64)}
    with torch.no_grad():
        for number, channels in silent.items():
            layer = model.blocks[number].feed_forward
            (layer.down.weight if number else layer.up.weight.T)[:, channels] = 0
        expected = model(TOKENS)
    importance = unit_importance(model, TOKENS)
    state, changes = prune_feed_forward(model, model.state_dict(), importance, 0.5)
    smaller = built(kind, changes["feed_forward_width"])
    smaller.load_state_dict(state)
    assert smaller.blocks[0].feed_forward.up.weight.shape == (64, 32)
    torch.testing.assert_close(smaller(TOKENS), expected, rtol=1e-5, atol=1e-5)


def test_the_importance_is_the_size_of_what_a_channel_writes(kind):
    model = built(kind)
    written = []
    layer = model.blocks[1].feed_forward
    layer.register_forward_pre_hook(lambda _, inputs: written.append(inputs[0]))
    importance = unit_importance(model, TOKENS)["blocks.1.feed_forward"]
    hidden = layer.up(written[0]).relu().square()[..., 5:6]
    sizes = (hidden * layer.down.weight[:, 5]).norm(dim=-1)
    assert importance[5].item() == pytest.approx(sizes.square().mean().sqrt().item(), rel=1e-4)
    assert not layer.down._forward_pre_hooks


def test_a_site_that_has_halted_does_not_count():
    torch.manual_seed(0)
    model = ResNetBK(ResNetBKConfig(40, d_model=32, n_layers=3, n_heads=4, halting=Halting(first_layer=1)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.stack.bias.fill_(-1)  # about half of the sites stop before layer 2
    model.eval()
    importance = unit_importance(model, TOKENS)
    assert 2.3 < model.measurements()["depth"] < 2.7
    written = {number: [] for number in range(3)}
    for number, block in enumerate(model.blocks):  # decoding computes the sites that are left, and no padding
        block.feed_forward.register_forward_pre_hook(
            lambda layer, inputs, number=number: written[number].append(layer.up(inputs[0]))
        )
    state = model.initial_state(len(TOKENS))
    with torch.no_grad():
        for token in TOKENS.T:
            _, state = model.step(token, state)
    for number, block in enumerate(model.blocks):
        squares = torch.cat(written[number]).relu().pow(4).double().sum(0) / TOKENS.numel()
        expected = squares.sqrt() * block.feed_forward.down.weight.double().norm(dim=0)
        torch.testing.assert_close(
            importance[f"blocks.{number}.feed_forward"], expected, rtol=1e-3, atol=1e-6
        )


def test_it_loses_less_than_at_random_and_than_the_other_half(kind):
    model = built(kind)
    with torch.no_grad():  # channels of very different sizes, as training makes them
        for block in model.blocks:
            block.feed_forward.up.weight.mul_(torch.logspace(-1, 0.5, 128)[torch.randperm(128), None])
    importance = unit_importance(model, TOKENS)
    random = {name: torch.rand_like(scores) for name, scores in importance.items()}
    worst = {name: -scores for name, scores in importance.items()}
    errors = []
    for scores in (importance, random, worst):
        state, changes = prune_feed_forward(model, model.state_dict(), scores, 0.5)
        smaller = built(kind, changes["feed_forward_width"])
        smaller.load_state_dict(state)
        errors.append((smaller(TOKENS) - model(TOKENS)).norm().item())
    assert errors[0] < 0.5 * errors[1] < errors[2]


@pytest.mark.parametrize("share", [0.999, 0.001])
def test_a_share_that_leaves_nothing_or_takes_nothing_is_refused(kind, share):
    model = built(kind)
    importance = unit_importance(model, TOKENS)
    with pytest.raises(UserError, match=rf"prune:{share} leaves (0|128) of 128 channels"):
        prune_feed_forward(model, model.state_dict(), importance, share)


def test_other_models_and_layers_are_refused_by_name(kind):
    with pytest.raises(UserError, match="not Embedding"):
        unit_importance(nn.Embedding(2, 2), TOKENS)
    model = built(kind)
    model.blocks[1].feed_forward = nn.Identity()
    with pytest.raises(UserError, match=r"blocks.1.feed_forward is Identity"):
        unit_importance(model, TOKENS)


def with_experts(count, top_k=2):
    torch.manual_seed(0)
    experts = MixtureOfExperts(count=count, top_k=top_k, width=24)
    model = ResNetBK(ResNetBKConfig(40, d_model=32, n_layers=2, n_heads=4, experts=experts))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def test_the_least_important_experts_go_with_their_rows_of_the_router():
    model = with_experts(5)
    importance = {f"blocks.{n}.feed_forward": torch.tensor([0.1, 0.4, 0.0, 0.3, 0.2]) for n in range(2)}
    state, changes = prune_feed_forward(model, model.state_dict(), importance, 0.4)
    assert changes == {"experts": {"count": 3, "width": 24}}
    smaller = with_experts(3)
    smaller.load_state_dict(state)
    for after, before in zip(smaller.blocks, model.blocks, strict=True):
        kept = [1, 3, 4]
        assert torch.equal(after.feed_forward.up, before.feed_forward.up[kept])
        assert torch.equal(after.feed_forward.down, before.feed_forward.down[kept])
        assert torch.equal(after.feed_forward.router.weight, before.feed_forward.router.weight[kept])
    assert smaller(TOKENS).isfinite().all()


def test_an_experts_importance_is_its_probability_where_it_is_chosen():
    model, given = with_experts(4, top_k=1), []
    layer = model.blocks[1].feed_forward
    layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].flatten(0, 1)))
    importance = unit_importance(model, TOKENS)["blocks.1.feed_forward"]
    p = layer.router(torch.cat(given)).softmax(-1)
    expected = torch.where(p == p.max(-1, keepdim=True).values, p, 0.0).mean(0)
    torch.testing.assert_close(importance.float(), expected, rtol=1e-4, atol=1e-6)
    assert importance.sum() <= 1


def test_too_few_experts_are_refused():
    model = with_experts(4, top_k=3)
    importance = unit_importance(model, TOKENS)
    with pytest.raises(UserError, match=r"prune:0.5 leaves 2 of 4 experts: .* at least 3"):
        prune_feed_forward(model, model.state_dict(), importance, 0.5)
