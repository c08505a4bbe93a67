"""Adaptive computation: what halts is left out, and nothing else changes."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bkray.config import UserError
from bkray.config.model import Halting, WindowedAttention
from bkray.model import ResNetBK, ResNetBKConfig
from bkray.model.halting import _Places, halting_at

VOCABULARY, LAYERS = 50, 4


def build(seed=0, spread=3.0, **options):
    """A model whose layers all do something, and whose units disagree about the sites."""
    torch.manual_seed(seed)
    sizes = {
        "d_model": 32,
        "n_layers": LAYERS,
        "n_heads": 4,
        "halting": Halting(threshold=0.8, warmup=0),
    } | options
    model = ResNetBK(ResNetBKConfig(VOCABULARY, **sizes))
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            if parameter.dim() > 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        if sizes["halting"]:
            model.stack.weight.add_(spread * torch.randn_like(model.stack.weight))
    return model


def test_sites_halt_at_different_depths():
    model = build()
    model(torch.randint(VOCABULARY, (4, 64)))
    depth = model.measurements()["depth"]
    assert 1.5 < depth < 3.5
    assert model.measurements() == {}


def test_a_pass_costs_what_its_depth_says():
    model, tokens = build(), torch.randint(VOCABULARY, (1, 512))

    def flops():
        with FlopCounterMode(display=False) as counter:
            model.hidden(tokens)
        return counter.get_total_flops(), model.measurements()["depth"]

    with halting_at(model.stack, 0.0):
        full, depth = flops()
    assert depth == LAYERS
    partial, depth = flops()
    assert partial / full == pytest.approx(depth / LAYERS, abs=0.02)
    with halting_at(model.stack, 1.0):
        least, depth = flops()
    assert depth == 1
    assert least / full < 0.3


def test_live_sites_that_never_halt_make_the_plain_model_with_weighted_updates():
    model, tokens = build(spread=0.0), torch.randint(VOCABULARY, (2, 19))
    with torch.no_grad():
        model.stack.bias.fill_(-40.0)
    plain = build(halting=None)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("stack")})
    torch.testing.assert_close(model(tokens), plain(tokens))


def test_a_halted_site_is_as_if_it_were_not_there_to_deeper_layers():
    """By hand, a sequence at a time, with no padding."""
    model, tokens = build().eval(), torch.randint(VOCABULARY, (3, 41))
    rows = []
    with torch.no_grad():
        for row in tokens:
            x = model.blocks[0](torch.nn.functional.rms_norm(model.embedding(row[None]), (32,), eps=1e-6))
            survival, sites = torch.ones(1, 41), torch.arange(41)
            for layer in range(1, LAYERS):
                survival = survival * model.stack._goes_on(x, layer - 1)
                live = sites[survival[0, sites] > 0.8]
                sites = live
                if len(live):
                    y = model.blocks[layer](x[:, live])
                    x[:, live] += survival[:, live, None] * (y - x[:, live])
            rows.append(x[0])
        expected = torch.nn.functional.rms_norm(torch.stack(rows), (32,), eps=1e-6)
        torch.testing.assert_close(model.hidden(tokens), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("length", [3, 33, 130])
@pytest.mark.parametrize("training", [True, False])
def test_no_bit_of_the_past_depends_on_how_many_later_sites_are_live(length, training, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = build(d_model=64).train(training)
        tokens = torch.randint(VOCABULARY, (3, length))
        expected, counts = model(tokens), set()
        for past in range(0, length, max(1, length // 7)):
            changed = tokens.clone()
            changed[:, past:] = torch.randint(VOCABULARY, changed[:, past:].shape)
            assert torch.equal(model(changed)[:, :past], expected[:, :past])
            counts.add(model.measurements()["depth"])
        assert len(counts) > 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("length", [2, 6])
def test_no_bit_depends_on_whether_a_single_site_or_a_few_are_live(length):
    """Products with single rows round differently: shorter sequences must never have them."""
    model, past = build(), length // 2
    with torch.no_grad():
        for _ in range(40):
            tokens = torch.randint(VOCABULARY, (1, length))
            changed = torch.cat([tokens[:, :past], torch.randint(VOCABULARY, (1, length - past))], dim=1)
            assert torch.equal(model(changed)[:, :past], model(tokens)[:, :past])


def test_decoding_equals_the_parallel_pass_over_many_sites():
    model, tokens = build().eval(), torch.randint(VOCABULARY, (4, 150))
    state, steps = model.initial_state(4), []
    with torch.no_grad():
        for i in range(tokens.shape[1]):
            logits, state = model.step(tokens[:, i], state)
            steps.append(logits)
        torch.testing.assert_close(torch.stack(steps, dim=1), model(tokens), rtol=1e-5, atol=1e-5)
    seen = torch.stack([mixer[0][:, 0] for mixer in state.mixers[1:]])
    assert (seen > 0).all()
    assert (seen[-1] < 150).all()
    assert 1 + seen.sum() / tokens.numel() == pytest.approx(model.measurements()["depth"])


@pytest.mark.parametrize(("threshold", "layers"), [(0.96, 4), (0.9, 4), (0.5, 20), (0.999, 40)])
def test_at_the_start_sites_go_through_every_layer(threshold, layers):
    model = build(spread=0.0, n_layers=layers, d_model=16, halting=Halting(threshold=threshold))
    model(torch.randint(VOCABULARY, (2, 9))).square().sum().backward()
    assert model.measurements()["depth"] == layers
    assert all(block.mixer.forget.weight.grad.any() for block in model.blocks)


def test_usually_a_unit_starts_at_a_twentieth():
    model = ResNetBK(ResNetBKConfig(VOCABULARY, halting=Halting()))
    assert model.stack.bias.sigmoid().tolist() == pytest.approx([0.0474] * 3, abs=1e-4)


def test_with_no_live_site_every_parameter_still_has_a_gradient():
    model = build()
    with torch.no_grad():
        model.stack.weight.zero_()
        model.stack.bias.fill_(-1.0)
    model(torch.randint(VOCABULARY, (2, 9))).square().sum().backward()
    assert model.measurements()["depth"] == 1
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        idle = name.startswith("stack") or (name.startswith("blocks") and not name.startswith("blocks.0"))
        assert bool((parameter.grad == 0).all()) == idle, name


def test_the_units_gradients_are_exact():
    model = build(d_model=16).double()
    tokens = torch.randint(VOCABULARY, (2, 7))
    names = ["stack.weight", "stack.bias", "blocks.2.mixer.psi", "blocks.1.mixer.convolution.taps"]
    values = [model.get_parameter(name).detach().clone().requires_grad_() for name in names]

    def outputs(*values):
        logits = torch.func.functional_call(model, dict(zip(names, values, strict=True)), (tokens,))
        return logits[..., :3], model.auxiliary_losses()["ponder_loss"]

    assert torch.autograd.gradcheck(outputs, values)


def test_ponder_cost_makes_it_shallower_and_usefulness_deeper():
    """A task that needs no depth: with a ponder cost sites halt early, with hardly any they go on."""
    depths = {}
    for ponder in (1e-6, 0.3):
        torch.manual_seed(0)
        config = ResNetBKConfig(
            11, d_model=32, n_layers=4, n_heads=4, halting=Halting(ponder=ponder, warmup=0.3)
        )
        model = ResNetBK(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        tokens = torch.arange(66).remainder(11).expand(4, -1)
        for step in range(60):
            logits = model(tokens[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            (loss + model.auxiliary_losses(step / 60)["ponder_loss"]).backward()
            optimizer.step()
            optimizer.zero_grad()
        depths[ponder] = model.measurements()["depth"]
        assert loss < 0.5
    assert depths[0.3] < 2
    assert depths[1e-6] > 3


@pytest.mark.parametrize(("warmup", "share"), [(0, 1.0), (0.1, 1.0), (0.8, 0.25)])
def test_the_ponder_loss_is_weighted_and_only_there_in_training(warmup, share):
    model, tokens = (
        build(halting=Halting(threshold=0.5, ponder=0.1, warmup=warmup), spread=0.0),
        torch.tensor([[1, 2, 3]]),
    )
    model(tokens)
    goes_on = torch.sigmoid(torch.tensor(3.0))
    expected = share * 0.1 * sum(goes_on**layer for layer in range(1, LAYERS))
    torch.testing.assert_close(model.auxiliary_losses(progress=0.2)["ponder_loss"], expected)
    model.eval()(tokens)
    assert model.auxiliary_losses() == {}


def test_places_lead_there_and_back():
    live = torch.tensor([[0, 1, 1, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    x = torch.arange(10.0).view(2, 5, 1) + 1
    places = _Places(live)
    assert places.gather(x)[:, :4, 0].tolist() == [[2, 3, 5, 0], [0, 0, 0, 0]]
    assert places.gather(x).shape == (2, 16, 1)
    assert torch.equal(places.scatter(places.gather(x)), x * live.unsqueeze(-1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"halting": Halting(first_layer=4)}, "halting.first_layer 4: with n_layers 4 the last is 3"),
        ({"halting": Halting(), "attention": WindowedAttention(layers=(2,))}, "move attention below it"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        build(**options)


def test_attention_below_the_first_layer_that_sites_go_without():
    model = build(attention=WindowedAttention(layers=(0,), window=5)).eval()
    tokens = torch.randint(VOCABULARY, (2, 20))
    state, steps = model.initial_state(2), []
    with torch.no_grad():
        for i in range(20):
            logits, state = model.step(tokens[:, i], state)
            steps.append(logits)
        torch.testing.assert_close(torch.stack(steps, dim=1), model(tokens), rtol=1e-5, atol=1e-5)
