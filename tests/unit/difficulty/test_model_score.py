"""Scores of windows: their definitions, window by window, and never the logits of a whole one."""

import weakref

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bkray.config import UserError, parse_recipe
from bkray.config.model import ResNetBKModel
from bkray.difficulty import perplexity, score_windows, scoring_dtype, windows_a_pass
from bkray.difficulty.model_score import _positions
from bkray.model import build_model
from bkray.selection import MEASURES, dropout_masks, variation_ratio

VOCABULARY, WINDOW = 50, 304  # more positions than a chunk
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (7, WINDOW + 1)).astype(np.int32)
MASKS = dropout_masks(6, 16, 0.3, seed=1)
ALL = {"measures": list(MEASURES), "each_token": True, "embedding": True, "masks_TD": MASKS}


class Logits(torch.nn.Module):
    """A model that shows its logits alone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens_BN):
        return self.model(tokens_BN)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = build_model(ResNetBKModel(kind="resnet_bk", d_model=16, n_layers=1, n_heads=2), VOCABULARY)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


@torch.no_grad()
def expected(model):
    """Every score by its definition, from all logits at once."""
    batch = torch.from_numpy(TOKENS).long()
    hidden = model.hidden(batch[:, :-1])
    logits = model.head(hidden)
    losses = F.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")
    votes = torch.stack([model.head(hidden * mask).argmax(-1) for mask in MASKS])
    return {
        "loss": losses.mean(1),
        "token_loss": losses,
        "embedding": hidden.mean(1),
        "variation_ratio": variation_ratio(votes),
        **{name: measure(logits) for name, measure in MEASURES.items()},
    }


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05), (None, 0.05)], ids=str
)
def test_scores_equal_their_definitions(model, dtype, tolerance):
    found = score_windows(model, TOKENS, dtype=dtype, **ALL)
    for name, values in expected(model).items():
        np.testing.assert_allclose(found.pop(name), values.numpy(), rtol=tolerance, atol=tolerance / 2)
    assert not found


KINDS = {
    "resnet_bk": {"d_model": 192},
    "odd width": {"d_model": 36, "n_heads": 4},
    "experts": {"experts": {"count": 4, "top_k": 1}},
    "halting": {"n_layers": 2, "d_model": 96, "halting": {"threshold": 0.95}},
    "multiscale": {"n_layers": 2, "d_model": 128, "multiscale": {"layers": [1], "factor": 3}},
    "attention": {"attention": {"layers": [0], "window": 5}},
    "potential": {"mixer": "potential"},
    "transformer": {"kind": "transformer"},
    "gru": {"kind": "gru"},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [256, 272, 48, 7])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_score_depends_on_its_window_alone(kind, window, dtype):
    """Wherever it lies in a pass, whatever lies beside it: the windows are more than one pass takes."""
    recipe = {"name": "t", "corpus": {"kind": "docstrings"}, "window": window}
    recipe["training"] = {"batch_tokens": 4 * window}
    recipe["model"] = {"kind": "resnet_bk", "d_model": 64, "n_layers": 1, **kind}
    torch.manual_seed(0)
    model = build_model(parse_recipe(recipe).model, VOCABULARY)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCABULARY, (windows_a_pass(model, window) + 3, window + 1)).astype(np.int32)
    usual = score_windows(model, tokens, dtype=dtype, embedding=True, each_token=True)
    for rows in (rng.permutation(len(tokens)), np.array([len(tokens) - 1, 0]), np.array([1])):
        again = score_windows(model, tokens[rows], dtype=dtype, embedding=True, each_token=True)
        for name, values in again.items():
            np.testing.assert_array_equal(values, usual[name][rows], err_msg=name)


@pytest.mark.parametrize(
    ("able", "dtype"),
    [("avx512_bf16", torch.bfloat16), ("amx_bf16", torch.bfloat16), ("avx512_vnni", torch.float32)],
)
def test_products_are_in_bfloat16_where_the_device_has_it(model, monkeypatch, able, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {able: True, "avx2": True})
    assert scoring_dtype(torch.device("cpu")) == dtype
    default, asked = score_windows(model, TOKENS), score_windows(model, TOKENS, dtype=dtype)
    np.testing.assert_array_equal(default["loss"], asked["loss"])
    in_full, halved = (score_windows(model, TOKENS, dtype=d)["loss"] for d in (torch.float32, torch.bfloat16))
    assert (in_full != halved).any()


def test_a_gpu_that_emulates_bfloat16_has_it_not(monkeypatch):
    """Emulation is slower than float32."""
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, n=native: including_emulation or n,
        )
        assert scoring_dtype(torch.device("cuda")) == dtype


def test_only_what_is_asked_for_is_given_and_a_window_less_table_has_no_scores(model):
    assert set(score_windows(model, TOKENS)) == {"loss"}
    assert score_windows(model, TOKENS[:0], ["entropy"])["entropy"].shape == (0,)


def test_a_model_that_shows_logits_alone_has_the_same_scores_but_no_states(model):
    names = {"measures": ["entropy"], "each_token": True, "dtype": torch.float32}
    shown, hidden = score_windows(Logits(model), TOKENS, **names), score_windows(model, TOKENS, **names)
    for name, values in hidden.items():
        np.testing.assert_allclose(shown[name], values, rtol=1e-4)
    for asked in ({"embedding": True}, {"masks_TD": MASKS}):
        with pytest.raises(UserError, match=r"Logits has no hidden\(tokens\) and head\(hidden\)"):
            score_windows(Logits(model), TOKENS, **asked)


def test_logits_exist_a_chunk_at_a_time(largest):
    torch.manual_seed(0)
    wide = build_model(ResNetBKModel(kind="resnet_bk", d_model=16, n_layers=1, n_heads=2), 4000)
    with largest:
        score_windows(wide, TOKENS, **ALL)
    assert largest.most == 256 * 4000


def test_on_a_gpu_logits_are_bounded_by_their_number_whatever_the_vocabulary():
    with FakeTensorMode():
        assert _positions(torch.empty(1, 65_536, device="cuda")) == 512
        assert _positions(torch.empty(1, 1 << 25, device="cuda")) == 256
        assert _positions(torch.empty(1, 65_536)) == 256


def test_no_more_than_two_copies_of_a_chunk_of_logits_exist_beside_it():
    """The exponentials that a sum needs, and what they are of; entropy once had four."""
    logits_BNV = torch.randn(1, 64, 5000)
    for name, measure in MEASURES.items():
        live = Live(logits_BNV.numel())
        with live:
            measure(logits_BNV)
        assert live.most <= 2, name


class Live(TorchDispatchMode):
    """How many tensors of `numbers` elements that operators returned exist at the same time."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers, self.most, self.there = numbers, 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.numel() == self.numbers:
                self.there[tensor.untyped_storage().data_ptr()] = weakref.ref(tensor)
        self.there = {place: tensor for place, tensor in self.there.items() if tensor() is not None}
        self.most = max(self.most, len(self.there))
        return out


@pytest.mark.parametrize(("width", "windows"), [(64, 16), (640, 8), (2048, 1)])
def test_a_pass_of_a_large_model_is_short(width, windows):
    with torch.device("meta"):
        network = build_model(ResNetBKModel(kind="resnet_bk", d_model=width, n_layers=4), 4096)
    assert windows_a_pass(network, 256) == windows
    assert windows_a_pass(network, 1 << 16) == 1


def test_one_pass_through_the_body_gives_all_scores(model, monkeypatch):
    hidden, passes = model.hidden, []
    monkeypatch.setattr(model, "hidden", lambda tokens: passes.append(tokens.shape) or hidden(tokens))
    score_windows(model, TOKENS, **ALL)
    assert passes == [(windows_a_pass(model, WINDOW), WINDOW)]


class Float32(TorchDispatchMode):
    """The number of elements of the largest float32 tensor that an operator returned."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.float32:
            self.most = max(self.most, out.numel())
        return out


def test_logits_that_come_as_a_whole_become_float32_a_chunk_at_a_time():
    """The model's own are in bfloat16: a second copy of twice the size would be the largest of all."""
    embedding = torch.nn.Embedding(400, 400, dtype=torch.bfloat16)
    with Float32() as in_float32:
        score_windows(embedding, TOKENS[:1], ["entropy"], dtype=torch.bfloat16)
    assert in_float32.most == 256 * 400


def test_copies_that_lack_nothing_agree(model):
    kept = torch.ones(4, 16)
    assert not score_windows(model, TOKENS, masks_TD=kept)["variation_ratio"].any()
    assert score_windows(model, TOKENS, masks_TD=MASKS)["variation_ratio"].all()


def test_perplexity_orders_windows_as_the_loss_does(model):
    loss = score_windows(model, TOKENS)["loss"]
    np.testing.assert_array_equal(np.argsort(perplexity(loss)), np.argsort(loss))
    np.testing.assert_allclose(np.log(perplexity(loss)), loss, rtol=1e-6)
