"""The Koopman objective: what it measures, its schedule, and that it leaves the model alone."""

import pytest
import torch

from bkray.config.model import KoopmanObjective
from bkray.model import ResNetBK, ResNetBKConfig
from bkray.model.koopman import Koopman
from bkray.model.layers import rms_norm


def test_states_that_follow_a_linear_operator_cost_nothing_and_no_operator_costs_the_weight():
    torch.manual_seed(0)
    koopman = Koopman(8, weight=0.3, warmup=0.0)
    turn = torch.linalg.qr(torch.randn(8, 8)).Q
    states = [rms_norm(torch.randn(2, 8))]
    for _ in range(5):
        states.append(states[-1] @ turn.T)
    losses = []
    for matrix in (turn, torch.zeros(8, 8)):
        with torch.no_grad():
            koopman.operator.weight.copy_(matrix)
        koopman(torch.stack(states, dim=1))
        losses.append(koopman.auxiliary["koopman_loss"].item())
    assert losses == pytest.approx([0.0, 0.3], abs=1e-5)


def test_the_target_takes_no_gradient_and_the_state_and_the_operator_do():
    koopman, hidden = Koopman(8, weight=1.0, warmup=0.0), torch.randn(2, 5, 8, requires_grad=True)
    koopman(hidden)
    koopman.auxiliary["koopman_loss"].backward()
    assert (hidden.grad[:, :-1].abs().sum(-1) > 0).all()
    assert (hidden.grad[:, -1] == 0).all()
    assert koopman.operator.weight.grad.abs().sum() > 0


def test_the_weight_rises_over_the_warm_up():
    model = ResNetBK(ResNetBKConfig(20, 16, 1, 2, koopman=KoopmanObjective(weight=2.0, warmup=0.4)))
    tokens, losses = torch.randint(20, (2, 6)), []
    for progress in (0.0, 0.1, 0.2, 0.4, 1.0):
        model(tokens)
        losses.append(model.auxiliary_losses(progress)["koopman_loss"].item())
    assert losses == pytest.approx([share * losses[-1] for share in (0.0, 0.25, 0.5, 1.0, 1.0)])


def test_logits_are_those_without_it_and_evaluation_leaves_no_loss():
    models = []
    for koopman in (None, KoopmanObjective()):
        torch.manual_seed(0)
        models.append(ResNetBK(ResNetBKConfig(20, 16, 1, 2, koopman=koopman)))
    tokens = torch.randint(20, (2, 6))
    assert torch.equal(models[0](tokens), models[1](tokens))
    assert models[1].auxiliary_losses()
    models[1].eval()(tokens)
    assert not models[1].auxiliary_losses()
