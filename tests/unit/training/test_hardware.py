"""Precision, checkpointing and compilation: each changes how a step is computed, and only how."""

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from bkray.config import UserError, parse_recipe
from bkray.config.model import KoopmanObjective, MixtureOfExperts, SiteSparsity
from bkray.config.training import Training
from bkray.curriculum import CurriculumSampler
from bkray.model import ResNetBK, ResNetBKConfig, build_model
from bkray.training import Ledger, WindowData, export_model, hardware, load_model, train

VOCABULARY, WINDOW, BATCH = 16, 24, 8
COUNTING = np.add.outer(np.arange(64), np.arange(WINDOW + 1)).astype(np.int32) % VOCABULARY
KINDS = {
    "spectral": {"kind": "resnet_bk", "n_heads": 4},
    "potential": {"kind": "resnet_bk", "n_heads": 4, "mixer": "potential"},
    "transformer": {"kind": "transformer"},
    "gru": {"kind": "gru"},
}


def recipe(model="spectral", steps=6, **training):
    settings = {"tokens": steps * BATCH * WINDOW, "batch_tokens": BATCH * WINDOW, "workers": 1, "lr": 1e-2}
    return parse_recipe(
        {
            "name": "t",
            "corpus": {"kind": "docstrings"},
            "window": WINDOW,
            "model": {"d_model": 32, "n_layers": 2, **KINDS[model]},
            "training": {**settings, "log_every": 1, "eval_every": 4, **training},
        }
    )


class Losses:
    def __init__(self):
        self.values = []

    def log(self, step, *, loss, **others):
        self.values.append(loss)

    def truncate_after(self, step):
        return None


def trained(settings):
    """(model, losses of every step, validation loss, ledger table) of a short run."""
    torch.manual_seed(0)
    model, losses, ledger = build_model(settings.model, VOCABULARY), Losses(), Ledger()
    sampler = CurriculumSampler(np.zeros(len(COUNTING)), BATCH, settings.steps, start=1.0, seed=0)
    data = WindowData(COUNTING, COUNTING[:19])
    result = train(model, data, sampler, settings, reporter=losses, ledger=ledger)
    return model, losses.values, result.validation_loss, ledger.table()


def lively(model):
    torch.manual_seed(0)
    network = build_model(recipe(model).model, VOCABULARY)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def gradients(network, training):
    """Gradients of one pass, and the bytes that it keeps for them beside the parameters."""
    kept = {}
    own = {parameter.data_ptr() for parameter in network.parameters()}

    def keep(tensor):
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    tokens = torch.from_numpy(COUNTING[:BATCH]).long()
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = hardware.prepare(network.train(), training)(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        bytes_kept = sum(kept.values())
    return torch.autograd.grad(loss, list(network.parameters())), bytes_kept


@pytest.mark.parametrize("model", KINDS)
def test_bf16_rounds_and_still_learns(model):
    _, exact, exact_validation, _ = trained(recipe(model, steps=25))
    network, rough, rough_validation, _ = trained(recipe(model, steps=25, precision="bf16"))
    assert exact != rough
    assert exact_validation != rough_validation
    assert rough[0] == pytest.approx(exact[0], abs=0.02)
    assert rough[-1] < 0.7 * rough[0]
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_bf16_validates_in_bf16_too():
    """Not a step's change: with no learning, the difference is validation's own."""
    frozen = {"lr": 1e-30, "weight_decay": 0.0, "optimizer": "adamw"}
    assert trained(recipe(precision="bf16", **frozen))[2] != trained(recipe(**frozen))[2]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", KINDS)
def test_checkpointing_gives_the_same_bits_and_keeps_less(model, precision):
    with hardware.autocast(Training(precision=precision), torch.device("cpu")):
        plain, all_bytes = gradients(lively(model), Training())
        again, fewer_bytes = gradients(lively(model), Training(activation_checkpointing=True))
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)
    assert fewer_bytes < 0.35 * all_bytes


def test_checkpointing_keeps_the_gradients_of_auxiliary_losses():
    options = {
        "experts": MixtureOfExperts(top_k=2),
        "sparsity": SiteSparsity(),
        "koopman": KoopmanObjective(),
    }
    tokens, passes = torch.from_numpy(COUNTING[:BATCH]).long(), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = ResNetBK(ResNetBKConfig(VOCABULARY, d_model=32, n_layers=2, n_heads=4, **options))
        for parameter in network.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        network.checkpointing = checkpointing
        loss = network(tokens).logsumexp(-1).mean() + sum(network.auxiliary_losses().values())
        passes.append(torch.autograd.grad(loss, list(network.parameters())))
    for plain, again in zip(*passes, strict=True):
        assert torch.equal(plain, again)


def test_checkpointing_keeps_nothing_of_its_second_pass():
    options = {"experts": MixtureOfExperts(top_k=2), "sparsity": SiteSparsity()}
    network = ResNetBK(ResNetBKConfig(VOCABULARY, d_model=32, n_layers=2, n_heads=4, **options))
    network.checkpointing = True
    loss = network(torch.from_numpy(COUNTING[:BATCH]).long()).logsumexp(-1).mean()
    (loss + sum(network.auxiliary_losses().values())).backward()
    assert network.auxiliary_losses() == {}
    assert network.measurements().keys() == {"busiest_expert", "density"}  # those of the first pass are there


def test_checkpointing_trains_to_the_same_bits_and_is_charged():
    plain, _, _, cost = trained(recipe())
    again, _, _, more = trained(recipe(activation_checkpointing=True))
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    assert again.checkpointing
    assert 1.15 < more["training"]["flops"] / cost["training"]["flops"] < 4 / 3
    assert more["validation"]["flops"] == cost["validation"]["flops"]


def test_checkpointing_is_for_training_only():
    network = hardware.prepare(lively("spectral"), Training(activation_checkpointing=True)).eval()
    seen = []
    network.blocks[0].register_forward_hook(lambda *_: seen.append(1))
    network(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    assert len(seen) == 1


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_training_is_one_graph_with_the_same_losses_and_names(tmp_path):
    plain, losses, validation, _ = trained(recipe())
    assert not counters["stats"]["unique_graphs"]
    settings = recipe(compile=True)
    compiled, same, same_validation, _ = trained(settings)
    assert counters["stats"]["unique_graphs"] == 1
    np.testing.assert_allclose(same, losses, atol=1e-4)
    assert same_validation == pytest.approx(validation, abs=1e-4)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    (tmp_path / "tokenizer.json").write_text("{}")
    export_model(tmp_path / "model", compiled, settings, tmp_path / "tokenizer.json", VOCABULARY, {})
    loaded = load_model(tmp_path / "model")
    for one, other in zip(compiled.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("fresh_compiler")
def test_all_three_together(monkeypatch):
    monkeypatch.setattr(torch, "compile", aot_eager(torch.compile))
    _, plain, _, _ = trained(recipe(precision="bf16"))
    together = recipe(precision="bf16", activation_checkpointing=True, compile=True)
    _, losses, _, _ = trained(together)
    assert counters["stats"]["unique_graphs"] == 1
    np.testing.assert_allclose(losses, plain, atol=0.02)


def aot_eager(compile_):
    """All of torch.compile but the C++ compiler, which takes long."""
    return lambda model, **options: compile_(model, **{"backend": "aot_eager", **options})


def test_a_missing_compiler_and_missing_headers_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"no-such-compiler is not on the PATH.*training.compile=false"):
        trained(recipe(compile=True))
    monkeypatch.setenv("CXX", "true")
    monkeypatch.setattr(hardware.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    with pytest.raises(UserError, match=r"no Python.h.*python3-dev"):
        hardware.check_compiler()


class Breaking(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)

    def forward(self, tokens):
        torch._dynamo.graph_break()
        return self.embedding(tokens)


@pytest.mark.usefixtures("fresh_compiler")
def test_a_model_that_breaks_the_graph_is_refused_without_memory():
    with torch.device("meta"):
        breaking, whole = Breaking(), nn.Embedding(VOCABULARY, VOCABULARY)
    with pytest.raises(UserError, match=r"training.compile: torch cannot compile the model"):
        hardware.check_compiles(breaking, WINDOW)
    hardware.check_compiles(whole, WINDOW)


def test_keys_without_effect_are_refused():
    with pytest.raises(UserError, match=r"training.compile cannot take model kind gru"):
        recipe("gru", compile=True)
    own = {"kind": "import", "target": "torch.nn:Embedding"}
    values = recipe().model_dump(mode="json") | {"model": own, "training": {"activation_checkpointing": True}}
    with pytest.raises(UserError, match=r"activation_checkpointing has no effect on model kind import"):
        parse_recipe(values)
    with pytest.raises(UserError, match="no effect on Embedding"):
        hardware.prepare(nn.Embedding(2, 2), Training(activation_checkpointing=True))
