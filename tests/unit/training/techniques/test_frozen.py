"""A frozen prefix costs a forward pass alone, and with a cache not that; the weights are the same."""

import resource

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bkray.config import UserError, parse_recipe
from bkray.config.savings import ActivationCache
from bkray.curriculum import CurriculumSampler
from bkray.model import build_model
from bkray.reporting import RunLog
from bkray.training import Checkpointer, Ledger, WindowData, train
from bkray.training.cost.step_cost import StepCost
from bkray.training.objective import Objective
from bkray.training.techniques.frozen import FrozenPrefix, RowCache, freeze

VOCABULARY, WINDOW, BATCH, WINDOWS, STEPS, LAYERS = 16, 10, 4, 24, 15, 3
DATA = np.random.default_rng(0).integers(0, VOCABULARY, (WINDOWS, WINDOW + 1)).astype(np.int32)
ROW = WINDOW * 16 * 4  # bytes of a row that is kept
KINDS = {
    "spectral": {"kind": "resnet_bk", "n_heads": 4},
    "options": {
        "kind": "resnet_bk",
        "n_heads": 4,
        "experts": {"count": 2},
        "sparsity": {},
        "koopman": {},
    },
    "halting": {"kind": "resnet_bk", "n_heads": 4, "halting": {"first_layer": 2}},
    "transformer": {"kind": "transformer", "n_heads": 2},
    "gru": {"kind": "gru"},
}


def recipe(model="spectral", **training):
    settings = {"tokens": STEPS * BATCH * WINDOW, "batch_tokens": BATCH * WINDOW, "workers": 1, "lr": 1e-2}
    settings |= {"log_every": 1, "eval_every": 50, "checkpoint_every": 7, "start_from": "unread", "freeze": 2}
    return parse_recipe(
        {
            "name": "t",
            "corpus": {"kind": "docstrings"},
            "window": WINDOW,
            "model": {"d_model": 16, "n_layers": LAYERS, **KINDS[model]},
            "training": settings | training,
        }
    )


def lively(settings, vocabulary=VOCABULARY):
    torch.manual_seed(0)
    model = build_model(settings.model, vocabulary)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def trained(settings, **parts):
    model = lively(settings)
    sampler = CurriculumSampler(np.zeros(WINDOWS), BATCH, settings.steps, start=1.0, seed=0)
    train(model, WindowData(DATA, DATA[:5]), sampler, settings, **parts)
    return model


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("model", KINDS)
def test_frozen_layers_and_the_embedding_stay_and_the_others_learn(model, optimizer):
    settings = recipe(model, optimizer=optimizer)
    before, after = lively(settings), trained(settings)
    for (name, start), end in zip(before.named_parameters(), after.parameters(), strict=True):
        frozen = name.startswith(("embedding.", "blocks.0.", "blocks.1."))
        assert torch.equal(start, end) == frozen, name


@pytest.mark.parametrize("model", ["spectral", "transformer"])
def test_what_is_charged_is_the_share_that_autograd_computes(model):
    counted, charged = [], []
    for layers in (None, 2):
        settings = recipe(model, freeze=layers)
        network = lively(settings, 200)
        if layers:
            freeze(network, layers)
        objective = Objective(network, settings)
        with FlopCounterMode(display=False) as counter:
            objective(torch.from_numpy(DATA[:1]).long()).mean().backward()
        counted.append(counter.get_total_flops())
        charged.append(StepCost(network, WINDOW, settings.training).flops(WINDOW, None))
    assert counted[1] / counted[0] == pytest.approx(charged[1] / charged[0], rel=0.05)
    assert counted[1] < 0.7 * counted[0]


@pytest.mark.parametrize("cache", [{}, {"where": "disk"}, {"max_bytes": 9 * ROW}])
@pytest.mark.parametrize("model", KINDS)
def test_the_cache_changes_no_bit(model, cache):
    assert same(trained(recipe(model)), trained(recipe(model, activation_cache=cache)))


def test_the_cache_changes_no_bit_of_pieces_either():
    length = {"start": 5, "until": 0.7}
    assert same(trained(recipe(length=length)), trained(recipe(length=length, activation_cache={})))


def test_later_epochs_are_found_logged_and_not_charged(tmp_path):
    ledgers = [Ledger(), Ledger()]
    trained(recipe(), ledger=ledgers[0])
    model = trained(recipe(activation_cache={}), ledger=ledgers[1], reporter=RunLog(tmp_path / "log"))
    found = [line["activations_reused"] for line in RunLog.read(tmp_path / "log")]
    assert found == 6 * [0.0] + 9 * [1.0]  # an epoch is six steps
    costs = [ledger.table()["training"]["flops"] for ledger in ledgers]
    with FlopCounterMode(display=False) as counter:
        model.stream(torch.zeros(1, WINDOW, dtype=torch.int64), 2)
    assert costs[0] - costs[1] == 9 * BATCH * counter.get_total_flops()


class Killed(Exception):
    pass


class KillAt(RunLog):
    def log(self, step, **values):
        super().log(step, **values)
        if step == 9:
            raise Killed


def test_a_killed_run_with_a_cache_ends_bit_equal(tmp_path):
    settings = recipe(activation_cache={"dtype": "bfloat16"})
    saver = Checkpointer(tmp_path / "checkpoints", "key")
    with pytest.raises(Killed):
        trained(settings, checkpointer=saver, reporter=KillAt(tmp_path / "log"))
    assert same(trained(settings), trained(settings, checkpointer=saver))
    assert not same(trained(settings), trained(recipe()))


def prefix(**cache):
    model = lively(recipe())
    return model, FrozenPrefix(model, 2, ActivationCache(**cache))


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_rows_are_known_by_their_tokens_in_any_order(where):
    model, kept = prefix(where=where)
    tokens = torch.from_numpy(DATA[:6, :-1]).long()
    first = kept(tokens)
    assert kept.reused == 0
    assert not first.requires_grad
    torch.testing.assert_close(first, model.stream(tokens, 2))
    order = torch.tensor([4, 0, 5, 1])
    assert torch.equal(kept(tokens[order]), first[order])
    assert kept.reused == 1
    changed = tokens.clone()
    changed[3, 7] = (changed[3, 7] + 1) % VOCABULARY
    again = kept(changed)
    assert kept.reused == pytest.approx(5 / 6)
    assert torch.equal(again[[0, 1, 2, 4, 5]], first[[0, 1, 2, 4, 5]])
    torch.testing.assert_close(again[3], model.stream(changed, 2)[3])
    assert (again[3, 7:] != first[3, 7:]).any()


def test_frozen_layers_add_nothing_to_the_loss():
    model = lively(recipe("options")).train()
    FrozenPrefix(model, 2, None)(torch.from_numpy(DATA[:6, :-1]).long())
    assert model.auxiliary_losses() == {}
    assert model.measurements() == {}


@pytest.mark.parametrize("change", ["embedding.weight", "blocks.1.mixer.forget.bias"])
def test_a_change_of_the_frozen_weights_empties_the_cache(change):
    model, kept = prefix()
    tokens = torch.from_numpy(DATA[:6, :-1]).long()
    before = kept(tokens)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    assert torch.equal(kept(tokens), before)
    assert kept.reused == 1  # the same weights again are no change
    model.load_state_dict({**state, change: state[change] + 0.1})
    after = kept(tokens)
    assert kept.reused == 0
    assert kept.cache.bytes == 6 * ROW
    assert (after != before).any()
    torch.testing.assert_close(after, model.stream(tokens, 2))


def test_the_bound_holds_and_what_does_not_fit_is_computed():
    _, kept = prefix(max_bytes=4 * ROW - 1)
    tokens = torch.from_numpy(DATA[:6, :-1]).long()
    first = kept(tokens)
    assert torch.equal(kept(tokens), first)
    assert kept.reused == 0.5
    assert kept.cache.bytes == 3 * ROW


def test_bfloat16_rounds_at_first_sight_as_later():
    model, kept = prefix(dtype="bfloat16")
    tokens = torch.from_numpy(DATA[:6, :-1]).long()
    first = kept(tokens)
    assert torch.equal(kept(tokens), first)
    assert kept.cache.bytes == 6 * ROW // 2
    assert torch.equal(first, first.bfloat16().float())
    assert (first != FrozenPrefix(model, 2, None)(tokens)).any()


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_rows_of_another_length_take_the_place_of_those_before(where):
    cache = RowCache(ActivationCache(where=where, max_bytes=100))
    for length in (4, 8):
        rows = torch.randn(3, length, 3)
        for place, row in enumerate(rows):
            cache.keep(bytes([length, place]), row)
    assert cache.bytes == 96
    assert bytes([4, 0]) not in cache
    assert torch.equal(cache[bytes([8, 0])], rows[0])


def test_a_full_disk_ends_the_keeping_and_not_the_run(caplog):
    cache = RowCache(ActivationCache(where="disk"))
    rows = torch.randn(4, 3000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * rows[0].nbytes + 100, hard))
    try:
        for place, row in enumerate(rows):
            cache.keep(bytes([place]), row)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [bytes([place]) in cache for place in range(4)] == [True, True, False, False]
    assert all(torch.equal(cache[bytes([place])], rows[place]) for place in range(2))
    assert len(caplog.records) == 1
    assert f"stays at {2 * rows[0].nbytes} bytes" in caplog.text


@pytest.mark.parametrize(
    ("model", "training", "fault"),
    [
        ("spectral", {"freeze": 3}, r"freeze 3 is too many: at most 2 of model.n_layers 3"),
        (
            "spectral",
            {"start_from": None},
            r"freeze 2 would freeze untrained layers: set training",
        ),
        ("spectral", {"compile": True}, r"compile cannot take training.freeze 2"),
        ("spectral", {"freeze": None, "activation_cache": {}}, r"no effect without training.freeze"),
        (
            "spectral",
            {"activation_cache": {"max_bytes": ROW - 1}},
            rf"max_bytes {ROW - 1} has no effect: .* window of 10 takes {ROW} bytes: raise it to that",
        ),
        (
            "spectral",
            {"activation_cache": {"max_bytes": ROW // 2 - 1, "dtype": "bfloat16"}},
            rf"of a window of 10 takes {ROW // 2} bytes",
        ),
        ("halting", {"freeze": 3}, r"at most 2 with model.halting.first_layer 2"),
    ],
)
def test_what_cannot_be_frozen_is_refused(model, training, fault):
    with pytest.raises(UserError, match=fault):
        recipe(model, **training)


def test_a_vocabulary_beside_the_one_that_is_taken_and_foreign_blocks_are_refused():
    values = recipe().model_dump(mode="json")
    with pytest.raises(UserError, match=r"tokenizer.vocab_size has no effect beside training.start_from"):
        parse_recipe({**values, "tokenizer": {"vocab_size": 300}})
    with pytest.raises(UserError, match=r"training.freeze 2 cannot take model kind import"):
        parse_recipe({**values, "model": {"kind": "import", "target": "torch.nn:Embedding"}})
    multiscale = {"kind": "resnet_bk", "multiscale": {"layers": [1, 2]}}
    with pytest.raises(UserError, match=r"at most 1 with model.multiscale.layers \[1, 2\]"):
        parse_recipe({**values, "model": multiscale})
