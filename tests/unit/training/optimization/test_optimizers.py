import copy

import pytest
import torch
from torch import nn

from bkray.config import UserError, parse_recipe
from bkray.config.model import GRUModel, MixtureOfExperts, ResNetBKModel
from bkray.config.training import Training
from bkray.model import build_model
from bkray.training import build_optimizer
from bkray.training.cost.flops import optimizer_flops
from bkray.training.optimization.muon import Muon
from bkray.training.optimization.optimizers import layer_rates
from bkray.training.optimization.schedules import build_schedule

SMALL = ResNetBKModel(kind="resnet_bk", d_model=16, n_layers=1, n_heads=2)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_is_optimized_once_and_state_round_trips(name):
    torch.manual_seed(0)
    training = Training(optimizer=name, lr=1e-2)
    model = build_model(SMALL, 40)
    optimizer = build_optimizer(model, training)
    ours = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(ours) == sorted(id(p) for p in model.parameters())

    def step(network, opt):
        network(torch.arange(12).reshape(2, 6)).logsumexp(-1).sum().backward()
        opt.step()
        opt.zero_grad()

    step(model, optimizer)
    twin = build_model(SMALL, 40)
    twin.load_state_dict(model.state_dict())
    other = build_optimizer(twin, training)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(model, optimizer)
    step(twin, other)
    for (key, a), b in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


def test_muon_takes_the_linear_layers_and_not_the_tables():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.body, self.head = nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 50)

    net = Net()
    optimizer = build_optimizer(net, Training(optimizer="muon"))
    muon = [id(p) for group in optimizer.param_groups if "momentum" in group for p in group["params"]]
    assert muon == [id(net.body.weight)]
    decayed = [id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]]
    assert id(net.body.bias) not in decayed


def test_a_layer_that_is_as_wide_as_the_vocabulary_is_no_head():
    model = build_model(SMALL, 4 * SMALL.d_model)
    optimizer = build_optimizer(model, Training(optimizer="muon"))
    muon = {id(p) for group in optimizer.param_groups if "momentum" in group for p in group["params"]}
    assert id(model.blocks[0].feed_forward.up.weight) in muon
    assert id(model.embedding.weight) not in muon


def test_muon_takes_the_matrices_of_recurrent_layers():
    model = build_model(GRUModel(kind="gru", d_model=16, n_layers=1), 40)
    optimizer = build_optimizer(model, Training(optimizer="muon"))
    muon = {id(p) for group in optimizer.param_groups if "momentum" in group for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in muon and "gru" in name}
    assert names == {f"blocks.0.mixer.gru.weight_{kind}_l0" for kind in ("ih", "hh")}


def test_muon_takes_the_experts_matrices_one_by_one_and_no_convolution():
    experts = MixtureOfExperts(count=3, top_k=1, width=24)
    model = build_model(SMALL.model_copy(update={"experts": experts}), 40)
    optimizer = build_optimizer(model, Training(optimizer="muon"))
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [group["params"] for group in optimizer.param_groups if "momentum" in group]
    stacks = {names[id(p)].removeprefix("blocks.0.") for group in groups for p in group if p.ndim == 3}
    assert stacks == {"feed_forward.up", "feed_forward.down"}
    single, stack = nn.Parameter(torch.zeros(16, 24)), nn.Parameter(torch.zeros(3, 16, 24))
    assert optimizer_flops(Muon([stack], lr=1.0)) == 3 * optimizer_flops(Muon([single], lr=1.0))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_adamw_takes_its_step_in_one_pass(name):
    groups = build_optimizer(build_model(SMALL, 40), Training(optimizer=name)).param_groups
    assert all(group["fused"] for group in groups if "momentum" not in group)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_layer_decay_gives_every_layer_its_rate(name):
    model = build_model(SMALL.model_copy(update={"n_layers": 3}), 40)
    optimizer = build_optimizer(model, Training(optimizer=name, lr=0.1, layer_decay=0.5))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    expected = {"embedding": 0.1 / 16, "blocks.0": 0.1 / 8, "blocks.1": 0.1 / 4, "blocks.2": 0.1 / 2}
    for parameter_name, parameter in model.named_parameters():
        (layer,) = [layer for layer in expected if parameter_name.startswith(layer)]
        assert rates[id(parameter)] == pytest.approx(expected[layer]), parameter_name
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(p) for p in model.parameters() if p.ndim >= 2}
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 2)  # the log shows the highest


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("kind", ["resnet_bk", "gru"])
def test_the_embedding_has_a_rate_of_its_own(name, kind):
    model = build_model(SMALL if kind == "resnet_bk" else GRUModel(kind="gru", d_model=16, n_layers=1), 40)
    optimizer = build_optimizer(model, Training(optimizer=name, lr=0.1, embedding_lr=0.4))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for parameter_name, parameter in model.named_parameters():
        expected = 0.4 if parameter_name.startswith("embedding") else 0.1
        assert rates[id(parameter)] == expected, parameter_name
    assert {g["weight_decay"] for g in optimizer.param_groups if g["lr"] == 0.4} == {0.01}


def test_the_embeddings_own_rate_decays_with_its_layer():
    model = build_model(SMALL, 40)
    optimizer = build_optimizer(model, Training(lr=0.1, embedding_lr=0.4, layer_decay=0.5))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(model.embedding.weight)] == pytest.approx(0.4 * 0.5 ** (len(model.blocks) + 1))
    assert rates[id(next(model.blocks[-1].parameters()))] == pytest.approx(0.05)


def test_a_frozen_embedding_has_no_rate():
    training = {"embedding_lr": 0.1, "freeze": 1, "start_from": "model"}
    with pytest.raises(UserError, match=r"embedding_lr 0.1 has no effect: training.freeze keeps"):
        parse_recipe({"name": "t", "corpus": {"kind": "docstrings"}, "training": training})


@pytest.mark.parametrize("schedule", ["linear", "one_cycle", "plateau", "loss_trend"])
def test_schedules_keep_the_ratio_of_the_layers_rates(schedule):
    model = build_model(SMALL, 40)
    training = Training(schedule=schedule, warmup=0.2, lr=0.1, layer_decay=0.5)
    optimizer = build_optimizer(model, training)
    lr = build_schedule(optimizer, training, 20)
    given = layer_rates(model, 0.1, 0.5)
    for _ in range(12):
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        ratio = {round(rates[own] / rate, 9) for own, rate in given.items()}
        assert len(ratio) == 1
        optimizer.step()
        lr.step()


def test_layer_decay_needs_a_trained_model_and_its_layers():
    values = {"name": "t", "corpus": {"kind": "docstrings"}, "training": {"layer_decay": 0.8}}
    with pytest.raises(UserError, match=r"layer_decay 0.8 would hold back untrained layers: set training.st"):
        parse_recipe(values)
    with pytest.raises(UserError, match=r"layer_decay 0.8 cannot take model kind import"):
        parse_recipe({**values, "model": {"kind": "import", "target": "torch.nn:Embedding"}})
    with pytest.raises(UserError, match=r"layer_decay"):
        parse_recipe({**values, "training": {"layer_decay": 1.0, "start_from": "model"}})
