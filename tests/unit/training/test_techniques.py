"""What every technique owes: it trains, repeats itself, resumes to the bit, pays its costs; off is absent."""

import shutil

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from torch.nn import functional

from bkray.config import parse_recipe
from bkray.corpus.tokenizer import SEPARATOR
from bkray.curriculum import DifficultyAdjuster, ReplaySampler, WeightedSampler
from bkray.model import build_model
from bkray.training import Checkpointer, Ledger, WindowData, export_model, train
from bkray.training.optimization.optimizers import build_optimizer
from bkray.training.optimization.schedules import build_schedule
from bkray.training.state.start import load_overlapping
from tests.devices import DEVICES
from tests.unit.training.language import learnable

VOCAB, WINDOW, BATCH, STEPS = 16, 24, 8, 40
ALIVE = {"least_cosine": -1.0, "most_rise": 1e9}
"""No audit switches such a gradient cache off, so that it is resumed at work."""
TECHNIQUES = {
    "accumulate": {"accumulate": 2},
    "activation_checkpointing": {"activation_checkpointing": True},
    "adaptive": {"gradient_cache": {"kind": "stale", "threshold": 0.9, "adapt": {"low": 0.5}, **ALIVE}},
    "activation_cache": {"start_from": "elsewhere", "freeze": 1, "activation_cache": {}},
    "adjuster": {"curriculum": {"adjuster": {"patience": 1, "acceleration": 0.3, "min_delta": 0.5}}},
    "average": {"average": {"decay": 0.9}},
    "bf16": {"precision": "bf16"},
    "compile": {"compile": True},
    "constant": {"schedule": "constant"},
    "control_variate": {"gradient_cache": {"kind": "control_variate", "threshold": 0.9, "least_cosine": 0.5}},
    "cosine": {"schedule": "cosine"},
    "distillation": {"distillation": {"teachers": ["elsewhere"], "top_k": 3}},
    "embedding_lr": {"embedding_lr": 0.02},
    "every": {"gradient_cache": {"kind": "every", "first_audits": 2, "most_rise": 1.0, "least_cosine": 0.5}},
    "fall_back": {"on_divergence": "fall_back"},
    "freeze": {"start_from": "elsewhere", "freeze": 1},
    "layer_decay": {"start_from": "elsewhere", "layer_decay": 0.7},
    "length": {"length": {"start": 6}},
    "loss_trend": {"schedule": "loss_trend"},
    "loss_trend restarted": {"schedule": {"kind": "loss_trend", "restart_every": 15}},
    "one_cycle": {"schedule": "one_cycle"},
    "plateau": {"schedule": {"kind": "plateau", "patience": 0}},
    "replay": {"start_from": "elsewhere", "replay": {"run": "elsewhere", "share": 0.3}},
    "restarts": {"schedule": "restarts"},
    "skip": {"skip": {"share": 0.4}},
    "skip, biased": {"skip": {"share": 0.4, "unbiased": False}},
    "skip at random": {"skip": {"share": 0.4, "by": "random"}},
    "stale": {"gradient_cache": {"kind": "stale", "threshold": 0.9, "first_audits": 2, "least_cosine": 0.5}},
    "start_vocabulary": {"start_from": "elsewhere", "start_vocabulary": "overlap"},
    "token_selection": {"token_selection": {"keep": 0.6}},
    "token_selection at random": {"token_selection": {"kind": "random", "keep": 0.6}},
    "unfreeze": {"start_from": "elsewhere", "unfreeze": {"at": [0.4]}, "layer_decay": 0.9},
    "wsd": {"schedule": "wsd"},
}
TECHNIQUES["together"] = {
    **TECHNIQUES["adjuster"],
    "schedule": "loss_trend",
    "accumulate": 2,
    "average": {"decay": 0.9},
    "length": {"start": 6},
    "skip": {"share": 0.4},
    "token_selection": {"keep": 0.6},
    "gradient_cache": {"kind": "control_variate", "threshold": 0.9, **ALIVE},
    "on_divergence": "skip",
    "precision": "bf16",
    "activation_checkpointing": True,
}
TECHNIQUES["distilled together"] = {
    "accumulate": 2,
    "length": {"start": 6},
    "distillation": {"teachers": ["elsewhere"], "top_k": 3, "weight": 0.7},
    "skip": {"share": 0.4},
    "gradient_cache": {"kind": "stale", "threshold": 0.9, "first_audits": 2, **ALIVE},
    "start_from": "elsewhere",
    "freeze": 1,
    "precision": "bf16",
}
CHARGED = {
    "adaptive": {"gradient_cache"},
    "average": {"averaging"},
    "control_variate": {"gradient_cache"},
    "every": {"gradient_cache"},
    "distilled together": {"gradient_cache", "predictor"},
    "skip": {"predictor"},
    "skip, biased": {"predictor"},
    "stale": {"gradient_cache"},
    "together": {"averaging", "gradient_cache", "predictor"},
}
"""The ledger's kinds that a technique adds; the others add none."""
COMPUTED = {
    "adaptive": (0.5, 0.8),
    "activation_cache": (0.45, 0.65),
    "activation_checkpointing": (1.15, 1.33),
    "control_variate": (0.7, 0.9),
    "every": (0.5, 0.7),
    "distilled together": (0.05, 0.3),
    "freeze": (0.65, 0.68),
    "stale": (0.3, 0.7),
    "together": (0.7, 1.1),
    "token_selection": (0.99, 0.9995),
    "token_selection at random": (0.99, 0.9995),
    "unfreeze": (0.8, 0.95),
}
"""FLOPs of training over those of the plain run; the others' are the same."""
SAME_BITS = {"activation_checkpointing", "fall_back"}
"""Nothing diverges here: see below for what falls back."""
each = pytest.mark.parametrize("name", TECHNIQUES)


def recipe(curriculum=None, **training):
    model = {"kind": "resnet_bk", "d_model": 32, "n_layers": 2, "n_heads": 4}
    often = {"checkpoint_every": 10, "eval_every": 10, "log_every": 5, "keep_checkpoints": 9}
    size = {"tokens": STEPS * BATCH * WINDOW, "batch_tokens": BATCH * WINDOW, "workers": 1, "lr": 1e-2}
    return parse_recipe(
        {
            "name": "t",
            "corpus": {"kind": "docstrings"},
            "window": WINDOW,
            "curriculum": curriculum,
            "model": model,
            "training": {**size, **often, **training},
        }
    )


TRAINING = learnable(64, WINDOW, VOCAB, seed=0)
REFERENCE = np.random.default_rng(2).random((64, WINDOW)).astype(np.float16)
FOLLOWING = (5 * TRAINING[:, :-1, None] + np.array([3, 4, 5])) % VOCAB
SOFT_TARGETS = (
    FOLLOWING.reshape(64, -1).astype(np.uint16),
    np.log(np.tile([0.8, 0.1, 0.02], (64, WINDOW))).astype(np.float16),
)
DATA = WindowData(TRAINING, learnable(16, WINDOW, VOCAB, seed=1), REFERENCE, SOFT_TARGETS)
POOL = learnable(40, WINDOW, VOCAB, seed=4)
WITH_POOL = WindowData(np.concatenate([TRAINING, POOL]), DATA.validation)
SCORES = np.random.default_rng(3).random((2, 64)) + 0.1


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory):
    """The folder of an untrained model of 12 letters, and the tokenizer of these and four pairs of them."""
    folder, letters = tmp_path_factory.mktemp("start"), [SEPARATOR, *"abcdefghijk"]
    pairs = list(zip("abcd", "efgh", strict=True))
    for name, merges in (("old", []), ("new", pairs)):
        tokens = letters + ["".join(pair) for pair in merges]
        bpe = models.BPE({token: row for row, token in enumerate(tokens)}, merges)
        Tokenizer(bpe).save(str(folder / f"{name}.json"))
    torch.manual_seed(5)
    old = build_model(recipe().model, len(letters))
    export_model(folder / "model", old, recipe(), folder / "old.json", len(letters), {})
    return folder / "model", folder / "new.json"


@pytest.fixture(scope="module", params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(scope="module")
def run(vocabularies, device):
    """Call for the trained weights, the result and the ledger; the weighted sampler is a technique too."""

    def call(settings, checkpoints=None):
        torch.manual_seed(settings.seed)
        model = build_model(settings.model, VOCAB)
        if settings.training.start_vocabulary == "overlap":
            folder, tokenizer = vocabularies
            counts = load_overlapping(model, folder, settings.model, tokenizer)
            assert counts == {"shared": 12, "new": VOCAB - 12}
        model.to(device)
        sampler = WeightedSampler(
            *SCORES, BATCH, STEPS, pass_share=0.8, strengths=(0.0, 1.0), start=0.5, seed=settings.seed
        )
        ledger, data = Ledger(), DATA
        if replay := settings.training.replay:
            sampler, data = ReplaySampler(sampler, 64, len(POOL), replay.share), WITH_POOL
        adjuster = settings.curriculum and settings.curriculum.adjuster
        result = train(
            model,
            data,
            sampler,
            settings,
            ledger=ledger,
            checkpointer=Checkpointer(checkpoints, "key", 9) if checkpoints else None,
            adjuster=DifficultyAdjuster(**adjuster.model_dump()) if adjuster else None,
        )
        return model.state_dict(), result, ledger

    return call


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def assert_alike(one, other, but, at=""):
    """Two states of a checkpoint hold the same, but for the keys `but`."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), at
        for key in one.keys() - but:
            assert_alike(one[key], other[key], but, f"{at}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), at
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_alike(*pair, but, f"{at}[{number}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), at
    else:
        assert repr(one) == repr(other), at  # NaN is NaN


def costs(ledger):
    return {kind: (row["flops"], row["tokens"]) for kind, row in ledger.table().items()}


@pytest.fixture(scope="module")
def plain(run):
    return run(recipe())


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    """What a technique gives, trained once: its run, and the folder of its checkpoints."""
    done = {}

    def of(name):
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            done[name] = (*run(recipe(**TECHNIQUES[name]), folder), folder)
        return done[name]

    return of


@each
def test_it_trains_and_does_something(trained, plain, name):
    weights, result, _, _ = trained(name)
    assert result.steps == STEPS
    assert result.validation_loss < 0.95 * np.log(VOCAB)
    assert same(weights, plain[0]) == (name in SAME_BITS)


@each
def test_it_pays_for_what_it_computes_and_for_nothing_else(trained, plain, name):
    spent, without = trained(name)[2].table(), plain[2].table()
    assert spent.keys() - without.keys() == CHARGED.get(name, set())
    assert all(row["flops"] > 0 for row in spent.values())
    ratio = spent["training"]["flops"] / without["training"]["flops"]
    least, most = COMPUTED.get(name, (0.9999, 1.0001))
    assert least <= ratio <= most


@each
def test_a_resumed_run_ends_with_the_same_bits_and_costs(run, trained, tmp_path, name):
    weights, result, ledger, folder = trained(name)
    for step in (10, 20):
        shutil.copytree(folder / f"step-{step:08d}", tmp_path / f"step-{step:08d}")
    again = run(recipe(**TECHNIQUES[name]), tmp_path)
    assert same(again[0], weights)
    assert again[1] == result
    ends = (Checkpointer(path, "key").load() for path in (folder, tmp_path))
    assert_alike(*ends, but={"seconds", *(["ledger"] if name == "activation_cache" else [])})
    if name == "activation_cache":  # what was kept is gone: it is computed, and charged, once more
        assert again[2].total_flops > ledger.total_flops
    else:
        assert costs(again[2]) == costs(ledger)


@each
def test_a_repeated_run_is_the_same(run, trained, tmp_path, name):
    weights, result, ledger, _ = trained(name)
    again = run(recipe(**TECHNIQUES[name]), tmp_path)
    assert same(again[0], weights)
    assert again[1] == result
    assert costs(again[2]) == costs(ledger)


def test_windows_of_the_pool_count_among_the_unique_ones(trained):
    """The weighted sampler draws 51 of 64 windows a pass, 0.7 x 320 in all; the pool gives all of its 40."""
    _, result, _, _ = trained("replay")
    assert 40 * WINDOW + 51 * WINDOW <= result.unique_tokens <= (40 + 64) * WINDOW
    assert result.tokens == STEPS * BATCH * WINDOW


def test_off_is_absent(run, plain, tmp_path):
    keys = {key for settings in TECHNIQUES.values() for key in settings} - {"curriculum"}
    off = {key: None for key in keys if recipe().training.model_fields[key].default is None}
    assert {"gradient_cache", "skip", "length", "token_selection", "on_divergence"} <= off.keys()
    weights, result, ledger = run(recipe(**off), tmp_path)
    assert same(weights, plain[0])
    assert result == plain[1]
    assert costs(ledger) == costs(plain[2])
    assert costs(ledger).keys() == {"training", "optimizer", "validation"}
    parts = {"model", "optimizer", "schedule", "metrics", "sampler", "ledger"}
    own = {"step", "rng", "seen", "seconds", "validation_loss"}
    assert Checkpointer(tmp_path, "key").load().keys() == parts | own


def test_without_techniques_it_is_a_bare_loop(plain, device):
    """To the bit: nothing of what is off has a part in the computation."""
    settings = recipe()
    torch.manual_seed(settings.seed)
    model = build_model(settings.model, VOCAB).to(device)
    sampler = WeightedSampler(
        *SCORES, BATCH, STEPS, pass_share=0.8, strengths=(0.0, 1.0), start=0.5, seed=settings.seed
    )
    optimizer = build_optimizer(model, settings.training)
    schedule = build_schedule(optimizer, settings.training, STEPS)
    for step in range(STEPS):
        tokens = torch.from_numpy(TRAINING[sampler.ids(step)]).long().to(device)
        logits = model(tokens[:, :-1])
        losses = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.training.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    assert same(model.state_dict(), plain[0])


@pytest.mark.parametrize("name", ["fall_back", "skip"])
def test_watching_for_divergence_changes_no_bit_where_nothing_diverges(run, plain, tmp_path, name):
    weights, result, ledger = run(recipe(on_divergence=name), tmp_path)
    assert same(weights, plain[0])
    assert result == plain[1]
    assert costs(ledger) == costs(plain[2])
