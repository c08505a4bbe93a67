"""Token selection: the gradient of the kept tokens alone, the losses of all."""

import numpy as np
import pytest
import torch

from bkray.config import UserError, parse_recipe
from bkray.config.savings import TokenSelection
from bkray.curriculum import CurriculumSampler
from bkray.model import build_model
from bkray.reporting import RunLog
from bkray.training import Checkpointer, Ledger, WindowData, train
from bkray.training.cost.step_cost import StepCost
from bkray.training.objective import Objective, token_losses
from bkray.training.techniques.token_selection import TokenSelector, largest

VOCABULARY, WINDOW, BATCH, STEPS = 32, 12, 4, 20
DATA = np.random.default_rng(0).integers(0, VOCABULARY, (64, WINDOW + 1)).astype(np.int32)
DATA[:, 5:] = (
    DATA[:, 4:5] + np.arange(WINDOW - 4)
) % VOCABULARY  # the first tokens are noise, the rest counts
REFERENCE = np.where(np.arange(WINDOW) < 4, np.log(VOCABULARY), 0.1).repeat(64).reshape(WINDOW, 64).T


def recipe(**training):
    settings = {"tokens": STEPS * BATCH * WINDOW, "batch_tokens": BATCH * WINDOW, "workers": 1, "lr": 1e-2}
    return parse_recipe(
        {
            "name": "t",
            "corpus": {"kind": "docstrings"},
            "window": WINDOW,
            "model": {"kind": "resnet_bk", "d_model": 16, "n_layers": 2, "n_heads": 4},
            "training": {**settings, "log_every": 1, "eval_every": 50, "checkpoint_every": 7, **training},
        }
    )


def network(settings, vocabulary=VOCABULARY):
    torch.manual_seed(0)
    model = build_model(settings.model, vocabulary)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def trained(settings, **parts):
    model = network(settings)
    sampler = CurriculumSampler(np.zeros(len(DATA)), BATCH, settings.steps, start=1.0, seed=0)
    data = WindowData(DATA, DATA[:5], REFERENCE.astype(np.float16))
    return model, train(model, data, sampler, settings, **parts)


def test_exactly_the_share_is_kept_and_the_first_of_equals():
    scores = torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0, 2.0, 0.0])
    assert largest(scores, 0.6).tolist() == [False, True, True, True, True, False, False]
    assert largest(scores, 0.01).sum() == 1
    assert largest(scores, 1.0).all()


def test_every_micro_batch_of_a_step_draws_its_own_tokens_and_the_next_step_begins_anew():
    settings = recipe(token_selection={"kind": "random", "keep": 0.5}, accumulate=2)
    objective, tokens = Objective(network(settings), settings), torch.from_numpy(DATA[:BATCH]).long()

    def gradient(step, passes):
        objective.begin(step)
        for _ in range(passes):
            losses = objective(tokens)
        return torch.autograd.grad(losses.mean(), objective.network.embedding.weight)[0]

    first, second, again, later = (gradient(*which) for which in ((3, 1), (3, 2), (3, 1), (4, 1)))
    assert torch.equal(first, again)
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, later)


@pytest.mark.parametrize("length", [None, {"start": 6}])
def test_a_pass_gives_all_losses_and_the_gradient_of_the_mean_over_the_kept(length):
    settings = recipe(token_selection={"keep": 0.4}, length=length)
    model = network(settings)
    objective = Objective(model, settings)
    tokens, reference = torch.from_numpy(DATA[:BATCH]).long(), torch.rand(BATCH, WINDOW)
    objective.begin(0)
    losses = objective(tokens, reference)
    cut = tokens.unfold(1, 7, 6).flatten(0, 1) if length else tokens
    expected = token_losses(model(cut[:, :-1]), cut[:, 1:]).view(BATCH, WINDOW)
    torch.testing.assert_close(losses, expected)
    kept = (expected - reference).flatten().argsort(descending=True)[: round(0.4 * BATCH * WINDOW)]
    mean = expected.flatten()[kept].mean()
    parameters = list(model.parameters())
    for one, other in zip(
        torch.autograd.grad(losses.mean(), parameters), torch.autograd.grad(mean, parameters), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert objective.measurements()["kept_loss"] == pytest.approx(mean.item(), rel=1e-5)


def test_the_control_keeps_other_tokens_every_step_and_the_same_again():
    selector = TokenSelector(TokenSelection(kind="random", keep=0.25), seed=3)
    losses = torch.arange(40.0).view(4, 10).requires_grad_()
    masks = [torch.autograd.grad(selector(losses, None, step).sum(), losses)[0].bool() for step in (0, 1, 0)]
    assert [mask.sum() for mask in masks] == [10, 10, 10]
    assert torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], masks[1])


@pytest.mark.parametrize("kind", ["reducible", "random"])
def test_it_learns_is_logged_charged_and_resumes_bit_equal(tmp_path, kind):
    settings = recipe(token_selection={"kind": kind, "keep": 0.5}, activation_checkpointing=True)
    ledger, saver = Ledger(), Checkpointer(tmp_path / "checkpoints", "key")
    expected, result = trained(settings, ledger=ledger, reporter=RunLog(tmp_path / "log"))
    lines = RunLog.read(tmp_path / "log")
    early, late = ([line["kept_loss"] - line["loss"] for line in lines][part] for part in (0, -1))
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3
    if kind == "reducible":  # at first the tokens that can be learnt have the larger excess
        assert late < early
    plain = Ledger()
    trained(recipe(activation_checkpointing=True), ledger=plain)
    head = 2 * WINDOW * 16 * VOCABULARY
    less = plain.table()["training"]["flops"] - ledger.table()["training"]["flops"]
    assert less == pytest.approx(STEPS * BATCH * (3 - (1 + 3 * 0.5)) * head)
    with pytest.raises(Killed):
        trained(settings, checkpointer=saver, reporter=KillAt(tmp_path / "killed"))
    model, again = trained(settings, checkpointer=saver)
    assert again.validation_loss == result.validation_loss
    for one, other in zip(expected.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)


class Killed(Exception):
    pass


class KillAt(RunLog):
    def log(self, step, **values):
        super().log(step, **values)
        if step == 9:
            raise Killed


def test_with_a_frozen_prefix_the_head_has_no_gradient_and_is_charged_without():
    settings = recipe(
        token_selection={"keep": 0.5}, freeze=1, start_from="unread", activation_cache={"where": "disk"}
    )
    ledger, before = Ledger(), network(settings)
    model, _ = trained(settings, ledger=ledger)
    assert torch.equal(model.embedding.weight, before.embedding.weight)
    assert any((a != b).any() for a, b in zip(model.parameters(), before.parameters(), strict=True))
    head = 2 * WINDOW * 16 * VOCABULARY
    frozen = StepCost(model, WINDOW, recipe(freeze=1, start_from="unread").training)
    cost = ledger.table()["training"]["flops"]
    reused = BATCH * (STEPS - 16) / (BATCH * STEPS)  # an epoch is 16 steps
    expected = STEPS * BATCH * (frozen.flops(WINDOW, None, reused) - (2 - (1 + 2 * 0.5)) * head)
    assert cost == pytest.approx(expected)


def test_what_cannot_be_selected_is_refused_and_the_proxy_is_implied():
    assert recipe(token_selection={}).proxy is not None
    assert recipe(token_selection={"kind": "random"}).proxy is None
    with pytest.raises(UserError, match=r"compile cannot take training.token_selection"):
        recipe(token_selection={}, compile=True)
    values = recipe(token_selection={}).model_dump(mode="json")
    with pytest.raises(UserError, match=r"token_selection cannot take model kind import"):
        parse_recipe({**values, "model": {"kind": "import", "target": "torch.nn:Embedding"}})
    with pytest.raises(UserError, match=r"proxy has no effect"):
        parse_recipe({**values, "training": {"token_selection": {"kind": "random"}}})
