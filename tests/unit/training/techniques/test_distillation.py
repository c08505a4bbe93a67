"""Distillation: what is cached of the teachers, and what the student's loss and gradient are by it."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bkray.config import UserError, parse_recipe
from bkray.curriculum import CurriculumSampler
from bkray.model import build_model
from bkray.reporting import RunLog
from bkray.training import Ledger, WindowData, train
from bkray.training.loop import TrainingRun
from bkray.training.objective import Objective
from bkray.training.techniques.distillation import distillation_loss, distilled_losses, soft_targets

VOCABULARY, WINDOW, BATCH, STEPS = 32, 12, 4, 20


def recipe(**training):
    settings = {"tokens": STEPS * BATCH * WINDOW, "batch_tokens": BATCH * WINDOW, "workers": 1, "lr": 1e-2}
    return parse_recipe(
        {
            "name": "t",
            "corpus": {"kind": "docstrings"},
            "window": WINDOW,
            "model": {"kind": "resnet_bk", "d_model": 16, "n_layers": 2, "n_heads": 4},
            "training": {**settings, "log_every": 1, "eval_every": 50, **training},
        }
    )


def distilled(top_k=3, weight=0.7, **training):
    distillation = {"teachers": ["unread"], "top_k": top_k, "temperature": 1.5, "weight": weight}
    return recipe(distillation=distillation, **training)


def network(seed):
    torch.manual_seed(seed)
    model = build_model(recipe().model, VOCABULARY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def random_logits(rows=40, seed=0):
    """Of a teacher and of a student, (M, V) float64."""
    torch.manual_seed(seed)
    return 2 * torch.randn(2, rows, VOCABULARY, dtype=torch.float64)


def cached(teacher_MV, k):
    return reversed(teacher_MV.log_softmax(-1).topk(k))


def coarse(probabilities_V, ids_k):
    """The probabilities of the tokens and, last, what the others have together."""
    chosen = [float(probabilities_V[i]) for i in ids_k]
    return np.array([*chosen, 1 - sum(chosen)])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_all_tokens_kept_it_is_the_divergence_of_hinton_et_al(temperature):
    teacher, student = random_logits()
    ids, log_probs = cached(teacher, VOCABULARY)
    soft, learnt = ((logits / temperature).log_softmax(-1) for logits in (teacher, student))
    expected = temperature**2 * F.kl_div(learnt, soft, reduction="none", log_target=True).sum(-1)
    found = distillation_loss(student.log_softmax(-1), ids, log_probs, temperature)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_otherwise_it_is_that_of_the_tokens_and_the_rest(temperature):
    teacher, student = random_logits()
    ids, log_probs = cached(teacher, 3)
    found = distillation_loss(student.log_softmax(-1), ids, log_probs, temperature)
    for row in range(len(ids)):
        p, q = (
            coarse(logits[row].softmax(-1), ids[row]) ** (1 / temperature) for logits in (teacher, student)
        )
        p, q = p / p.sum(), q / q.sum()
        assert float(found[row]) == pytest.approx(temperature**2 * np.sum(p * np.log(p / q)))


def test_it_is_zero_for_the_same_and_at_temperature_1_at_most_the_whole_divergence():
    teacher, student = random_logits()
    whole = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True)
    before = torch.zeros(len(teacher), dtype=torch.float64)
    for k in (1, 4, 16, VOCABULARY):
        ids, log_probs = cached(teacher, k)
        for temperature in (0.5, 1.0, 3.0):
            same = distillation_loss(teacher.log_softmax(-1), ids, log_probs, temperature)
            torch.testing.assert_close(same, torch.zeros_like(same), atol=1e-9, rtol=0)
        found = distillation_loss(student.log_softmax(-1), ids, log_probs, 1.0)
        assert (found >= before - 1e-9).all(), "more tokens tell more"
        before = found
    torch.testing.assert_close(before, whole.sum(-1))


@pytest.mark.parametrize("k", [2, VOCABULARY])
def test_the_gradient_is_that_of_finite_differences(k):
    teacher, student = random_logits(rows=3)
    ids, log_probs = cached(teacher, k)

    def loss(logits):
        return distillation_loss(logits.log_softmax(-1), ids, log_probs, 2.0)

    assert torch.autograd.gradcheck(loss, student.requires_grad_())


def test_a_sure_teacher_and_a_sure_student_stay_finite():
    teacher, student = torch.zeros(2, 2, 8)
    teacher[:, 0], student[:, 1] = 60.0, 60.0
    student.requires_grad_()
    ids, log_probs = cached(teacher, 2)
    losses, soft = distilled_losses(student, torch.zeros(2, dtype=torch.int64), ids, log_probs, 2.0, 0.5)
    (gradient,) = torch.autograd.grad(losses.sum(), student)
    assert losses.isfinite().all()
    assert soft.isfinite().all()
    assert gradient.isfinite().all()


def test_the_loss_stays_cross_entropy_and_the_gradient_is_mixed():
    teacher, student = (logits.float() for logits in random_logits())
    student.requires_grad_()
    targets, (ids, log_probs) = torch.randint(VOCABULARY, (40,)), cached(teacher, 5)
    losses, soft = distilled_losses(student, targets, ids, log_probs, 1.5, 0.3)
    hard = F.cross_entropy(student, targets, reduction="none")
    expected_soft = distillation_loss(student.log_softmax(-1), ids, log_probs, 1.5)
    torch.testing.assert_close(losses, hard)
    torch.testing.assert_close(soft, expected_soft)
    (found,) = torch.autograd.grad(losses.sum(), student, retain_graph=True)
    (expected,) = torch.autograd.grad((0.7 * hard + 0.3 * expected_soft).sum(), student)
    torch.testing.assert_close(found, expected)


def test_what_is_cached_is_the_mean_of_the_teachers_window_by_window():
    teachers, tokens = [network(1), network(2)], np.random.default_rng(0).integers(0, VOCABULARY, (5, 71))
    ids, nats = soft_targets(teachers, tokens, 4, torch.float32)
    assert (ids.shape, nats.shape, nats.dtype) == ((5, 70, 4), (5, 70, 4), np.float16)
    with torch.no_grad():
        each = [teacher(torch.from_numpy(tokens[:, :-1])).softmax(-1) for teacher in teachers]
    mean = (each[0] + each[1]) / 2
    np.testing.assert_allclose(nats, mean.topk(4).values.log(), rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(mean.gather(-1, torch.from_numpy(ids)), mean.topk(4).values, rtol=1e-4)
    for rows in ([3], [4, 1, 3], []):
        again = soft_targets(teachers, tokens[rows], 4, torch.float32)
        np.testing.assert_array_equal(again[0], ids[rows])
        np.testing.assert_array_equal(again[1], nats[rows])

    class Plain(torch.nn.Module):  # a model of which no more than its logits is known
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, tokens):
            return self.model(tokens)

    bare = soft_targets([Plain(teacher) for teacher in teachers], tokens, 4, torch.float32)
    np.testing.assert_allclose(bare[1], nats, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(
    "training", [{}, {"length": {"start": 6}}, {"freeze": 1, "start_from": "unread", "activation_cache": {}}]
)
def test_a_pass_holds_every_target_against_its_own_soft_target(training):
    settings, tokens = distilled(**training), torch.randint(VOCABULARY, (BATCH, WINDOW + 1))
    model, (ids, log_probs) = network(0), cached(2 * torch.randn(BATCH, WINDOW, VOCABULARY), 3)
    objective = Objective(model, settings)
    objective.begin(0)
    model.train()
    losses = objective(tokens, None, (ids, log_probs))
    cut = tokens.unfold(1, 7, 6).flatten(0, 1) if "length" in training else tokens
    logits = model(cut[:, :-1]).view(BATCH, WINDOW, VOCABULARY)
    parameters, soft_losses = list(model.blocks[1].parameters()), []
    for window in range(BATCH):
        arguments = logits[window], tokens[window, 1:], ids[window], log_probs[window]
        expected, soft = distilled_losses(*arguments, 1.5, 0.7)
        torch.testing.assert_close(losses[window], expected)
        sums = losses[window].sum(), expected.sum()
        found, right = (torch.autograd.grad(one, parameters, retain_graph=True) for one in sums)
        torch.testing.assert_close(found, right)
        soft_losses.append(float(soft.mean()))
    assert objective.measurements()["distillation_loss"] == pytest.approx(np.mean(soft_losses))
    with pytest.raises(ValueError, match="needs the soft targets"):
        objective(tokens)


@pytest.mark.parametrize("training", [{}, {"skip": {"share": 0.5}}])
def test_the_windows_of_a_batch_come_with_their_own_soft_targets(training):
    tokens = np.arange(24, dtype=np.int32).repeat(WINDOW + 1).reshape(24, WINDOW + 1)
    soft = (tokens[:, 1:].astype(np.uint16), -tokens[:, 1:].astype(np.float16))
    settings = distilled(top_k=1, accumulate=2, **training)
    sampler = CurriculumSampler(np.zeros(24), BATCH, STEPS, start=1.0, seed=0)
    data = WindowData(tokens, tokens[:0], None, soft)
    run = TrainingRun(network(0), data, sampler, settings, None, Ledger(), None)
    for _ in range(4):
        batch = run.draw()
        for part in batch.parts(2):
            ids, nats = part.soft_targets
            assert (ids.dtype, nats.dtype) == (torch.int64, torch.float32)
            assert ids.shape == nats.shape == (BATCH // 2, WINDOW, 1)
            assert torch.equal(ids[:, :, 0], part.tokens[:, 1:])
            assert torch.equal(nats, -ids.float())
        run.train_step()


def test_the_student_comes_close_to_its_teacher_and_the_log_says_so(tmp_path):
    teacher, rng = network(1), np.random.default_rng(0)
    tokens = rng.integers(0, VOCABULARY, (16, WINDOW + 1)).astype(np.int32)
    flat = [each.reshape(16, -1) for each in soft_targets([teacher], tokens, 8, torch.float32)]
    settings = distilled(top_k=8, weight=1.0, tokens=60 * BATCH * WINDOW)
    sampler = CurriculumSampler(np.zeros(16), BATCH, settings.steps, start=1.0, seed=0)
    student = build_model(settings.model, VOCABULARY)
    data = WindowData(tokens, tokens[:4], None, tuple(flat))
    train(student, data, sampler, settings, reporter=RunLog(tmp_path / "log"))
    lines = RunLog.read(tmp_path / "log")
    assert lines[-1]["distillation_loss"] < 0.5 * lines[0]["distillation_loss"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"teachers": []}, "teachers"),
        ({}, "teachers"),
        ({"teachers": ["a", "b", "a"]}, "a is named more than once: an ensemble has other models"),
        ({"teachers": ["a"], "top_k": 0}, "top_k"),
        ({"teachers": ["a"], "temperature": 0}, "temperature"),
        ({"teachers": ["a"], "weight": 0}, "weight"),
        ({"teachers": ["a"], "weight": 1.1}, "weight"),
    ],
)
def test_impossible_values_are_named(section, message):
    with pytest.raises(UserError, match=message):
        recipe(distillation=section)


def test_what_does_not_go_with_it_is_refused():
    with pytest.raises(UserError, match=r"training.distillation cannot take training.token_selection"):
        distilled(token_selection={})
    values = distilled().model_dump(mode="json")
    with pytest.raises(UserError, match=r"vocab_size has no effect beside training.distillation.teachers"):
        parse_recipe({**values, "tokenizer": {"vocab_size": 999}})
