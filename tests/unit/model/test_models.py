"""What all language models promise: causality, streaming, clear errors, sensible starts."""

import functools
import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bkray.config import UserError
from bkray.config.model import (
    Halting,
    KoopmanObjective,
    MixtureOfExperts,
    Multiscale,
    SiteSparsity,
    WindowedAttention,
)
from bkray.model import GRU, GRUConfig, ResNetBK, ResNetBKConfig, Transformer, TransformerConfig
from bkray.model.halting import INITIAL_LOGIT, HaltingStack
from bkray.model.mixing import forget_gate, rational_phase

VOCABULARY = 50


def resnet_bk(**options):
    return ResNetBK, functools.partial(ResNetBKConfig, **options)


def gated(**options):
    """It has no heads."""
    return ResNetBK, lambda n_heads=None, **sizes: ResNetBKConfig(mixer="gated", **options, **sizes)


WINDOWED = WindowedAttention(layers=(1,), window=5)
KINDS = {
    "spectral": resnet_bk(),
    "gated": gated(),
    "potential": resnet_bk(mixer="potential"),
    "diagonal": resnet_bk(mixer="diagonal"),
    "windowed": resnet_bk(attention=WINDOWED),
    "halting": resnet_bk(halting=Halting(threshold=0.95)),
    "halting_potential": resnet_bk(mixer="potential", halting=Halting(threshold=0.95)),
    "multiscale": resnet_bk(multiscale=Multiscale(layers=(1,), factor=2)),
    "coarse_first": resnet_bk(multiscale=Multiscale(layers=(0,), factor=3)),
    "experts": resnet_bk(experts=MixtureOfExperts(count=4, top_k=2)),
    "one of the experts": resnet_bk(experts=MixtureOfExperts(count=4, top_k=1)),
    "koopman": resnet_bk(koopman=KoopmanObjective()),
    "sparse": resnet_bk(sparsity=SiteSparsity()),
    "sparse and gated": gated(sparsity=SiteSparsity()),
    "together": resnet_bk(
        attention=WINDOWED,
        multiscale=Multiscale(layers=(1,)),
        experts=MixtureOfExperts(top_k=2),
        koopman=KoopmanObjective(),
        sparsity=SiteSparsity(),
    ),
    "halting and koopman": resnet_bk(halting=Halting(threshold=0.95), koopman=KoopmanObjective()),
    "transformer": (Transformer, TransformerConfig),
    "gru": (GRU, lambda n_heads=None, **sizes: GRUConfig(**sizes)),
}


def lively(kind, **sizes):
    """A model whose zero-initialised matrices are filled, so that every path carries signal."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4} | sizes
    model = kind[0](kind[1](**sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        if isinstance(getattr(model, "stack", None), HaltingStack):
            model.stack.bias.fill_(INITIAL_LOGIT)  # survival lies around 0.95, above and below a threshold
    return model


def objective(model, logits):
    """A loss that every parameter takes part in: some do so in the terms that options add alone."""
    return sum(model.auxiliary_losses().values(), logits.float().square().sum())


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    return request.param


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("length", [2, 97])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_future_token_changes_no_past_bit(kind, training, length, autocast):
    model = lively(kind).train(training)
    tokens = torch.randint(VOCABULARY, (2, length))
    changed = tokens.clone()
    changed[:, length // 2] = (changed[:, length // 2] + 1) % VOCABULARY
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        before, after = model(tokens), model(changed)
    past = length // 2
    assert torch.equal(before[:, :past], after[:, :past])
    assert not torch.equal(before[:, past:], after[:, past:])


def test_every_past_token_reaches_the_last_logits(kind):
    model = lively(kind)
    embedded = []
    model.embedding.register_forward_hook(lambda _, __, out: embedded.append(out) or out.retain_grad())
    model(torch.randint(VOCABULARY, (1, 12)))[0, -1].square().sum().backward()
    assert (embedded[0].grad[0].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("length", [1, 37])
def test_decoding_equals_the_parallel_pass(kind, length):
    model = lively(kind).eval()
    tokens = torch.randint(VOCABULARY, (3, length))
    state, steps = model.initial_state(3), []
    with torch.no_grad():
        for i in range(length):
            logits, state = model.step(tokens[:, i], state)
            steps.append(logits)
        expected = model(tokens)
    scale = float(expected.abs().max())
    torch.testing.assert_close(torch.stack(steps, dim=1), expected, rtol=0, atol=1e-5 * scale)
    assert state.position == length


@pytest.mark.parametrize(
    "name", ["spectral", "gated", "potential", "diagonal", "windowed", "halting", "multiscale", "gru"]
)
def test_decodes_in_constant_memory(name):
    model = lively(KINDS[name])
    state, sizes = model.initial_state(2), []
    with torch.no_grad():
        for _ in range(12):
            _, state = model.step(torch.zeros(2, dtype=torch.long), state)
            sizes.append(sum(tensor.numel() for mixer in state.mixers for tensor in mixer))
    assert len(set(sizes[5:])) == 1  # a window of 5 sites is full by then


def test_decoding_leaves_the_old_state_valid(kind):
    model = lively(kind).eval()
    _, state = model.step(torch.tensor([1]), model.initial_state(1))
    first, _ = model.step(torch.tensor([2]), state)
    model.step(torch.tensor([3]), state)
    assert torch.equal(first, model.step(torch.tensor([2]), state)[0])


def test_head_of_hidden_is_the_logits(kind):
    model, tokens = lively(kind), torch.randint(VOCABULARY, (2, 9))
    hidden = model.hidden(tokens)
    assert hidden.shape == (2, 9, 32)
    parts = torch.cat([model.head(part) for part in hidden.split(4, dim=1)], dim=1)
    torch.testing.assert_close(parts, model(tokens))


def test_starts_near_the_uniform_guess_and_learns(kind):
    torch.manual_seed(0)
    model = kind[0](kind[1](vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4))
    tokens = torch.arange(66).remainder(11).expand(4, -1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert abs(losses[0] - math.log(VOCABULARY)) < 0.3
    assert losses[-1] < 0.5


def test_cannot_learn_what_is_not_there(kind):
    """Fresh random tokens every step: a causal model never gets below ln V, a leaking one does."""
    torch.manual_seed(0)
    model = kind[0](kind[1](vocab_size=4, d_model=32, n_layers=2, n_heads=4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        tokens = torch.randint(4, (16, 33))
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) / 20 > math.log(4) - 0.01


def test_every_parameter_gets_a_gradient(kind):
    model = lively(kind)
    objective(model, model(torch.randint(VOCABULARY, (2, 9)))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_resnet_bk_gradients_are_exact():
    model = lively(KINDS["spectral"], d_model=16, n_layers=1, n_heads=2, feed_forward_width=8).double()
    tokens = torch.randint(VOCABULARY, (2, 5))
    names = [name for name, _ in model.named_parameters() if not name.startswith("embedding")]
    values = [model.get_parameter(name).detach().clone().requires_grad_() for name in names]

    def logits(*values):
        parameters = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, parameters, (tokens,))[..., :3]

    assert torch.autograd.gradcheck(logits, values)


@pytest.mark.parametrize("longest", [256, 4096])
def test_gates_start_as_documented(longest):
    torch.manual_seed(0)
    mixer = ResNetBK(ResNetBKConfig(VOCABULARY, longest_memory=longest)).blocks[0].mixer
    z = torch.zeros(1, 1, 192)
    head, tangent, _ = mixer._phase(z)
    f, (cos, sin) = forget_gate(mixer.forget(z)), rational_phase(head, tangent)
    memory = -1 / f.log()
    assert memory.min() >= 2 * (1 - 1e-3)
    assert longest / 2 < memory.max() <= longest * (1 + 1e-2)
    torch.testing.assert_close(cos**2 + sin**2, torch.ones_like(cos))
    turns = torch.atan2(sin, cos) * memory
    assert turns.min() > 0
    assert turns.max() <= 1.5 * (1 + 1e-2)
    x = torch.randn(2, 7, 192)
    assert torch.equal(mixer(x), torch.zeros_like(x))


def test_only_true_matrices_have_two_dimensions():
    """The rule for an optimizer of matrices: two dimensions, and not the embedding."""
    model = ResNetBK(ResNetBKConfig(VOCABULARY, n_layers=1))
    matrices = {name.removeprefix("blocks.0.") for name, p in model.named_parameters() if p.dim() == 2}
    mixer = {f"mixer.{name}.weight" for name in ("forget", "gate", "output")}
    assert matrices == {"embedding.weight", "feed_forward.up.weight", "feed_forward.down.weight"} | mixer


def test_autocast_trains_close_to_float32(kind):
    model, tokens = lively(kind), torch.randint(VOCABULARY, (2, 33))
    exact = model(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(tokens)
    objective(model, rough).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    errors = (rough.float() - exact).norm(dim=-1) / exact.norm(dim=-1)
    if isinstance(model.stack, HaltingStack) or getattr(model.config, "experts", None):
        assert errors.median() < 0.05  # a site at a threshold may halt, or take another expert, in one pass
    else:
        assert (rough.float() - exact).norm() / exact.norm() < 0.05


def test_compiles_into_one_graph(kind):
    if kind[0] is GRU:
        pytest.skip("torch's own GRU breaks the graph")
    torch.compiler.reset()  # graphs of other models count towards the limit of graphs for one function
    model, tokens = lively(kind), torch.randint(VOCABULARY, (2, 33))
    if isinstance(model.stack, HaltingStack):
        pytest.skip("shapes depend on how many sites are live")
    results = []
    for run in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        logits = run(tokens)
        gradients = torch.autograd.grad(objective(model, logits), list(model.parameters()))
        results.append([logits, *gradients])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled)


def test_flop_counter_sees_the_mixing():
    model = lively(KINDS["spectral"])
    with FlopCounterMode(display=False) as counter:
        model(torch.randint(VOCABULARY, (2, 9))).sum().backward()
    counts = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    assert counts["bkray.spectral_mixing"] == 2 * 26 * 2 * 9 * 32
    assert counts["bkray.spectral_mixing_backward"] == 2 * 67 * 2 * 9 * 32


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.tensor([[0, VOCABULARY]]), "token id 50 is outside"),
        (torch.tensor([[-1, 0]]), "token id -1 is outside"),
        (torch.zeros(2, 0, dtype=torch.long), "not be empty"),
        (torch.zeros(2, dtype=torch.long), "shape"),
        (torch.zeros(2, 3), "int64 or int32 ids, not torch.float32"),
        (torch.zeros(2, 3, dtype=torch.uint8), "not torch.uint8: convert them with .long()"),
    ],
)
def test_bad_tokens_are_named(kind, tokens, message):
    with pytest.raises(UserError, match=message):
        lively(kind)(tokens)


def test_bad_sizes_are_named(kind):
    heads = getattr(kind[1](vocab_size=10), "mixer", "attention") in ("spectral", "potential", "attention")
    if heads and kind[0] is not GRU:
        with pytest.raises(UserError, match=r"d_model 30 .*n_heads 4"):
            kind[1](vocab_size=10, d_model=30, n_heads=4)
    else:
        assert lively(kind, d_model=30)(torch.zeros(1, 3, dtype=torch.long)).isfinite().all()
    with pytest.raises(UserError, match=r"d_model: .*integer"):
        kind[1](vocab_size=10, d_model="x")
    with pytest.raises(UserError, match=r"n_layers\b.*(at least|greater than or equal to) 1"):
        kind[1](vocab_size=10, n_layers=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixer": "spectrl"}, "mixer: 'spectrl' is unknown; did you mean spectral"),
        ({"attention": WindowedAttention(layers=(7,))}, "with n_layers 4 the last is 3"),
        ({"attention": WindowedAttention(layers=(1, 1))}, "names a layer more than once"),
        ({"attention": WindowedAttention(layers=(1,), n_heads=5)}, "multiple of attention.n_heads 5"),
        ({"attention": WindowedAttention(layers=(0, 1, 2, 3)), "n_heads": 8}, "n_heads: no effect"),
        ({"experts": MixtureOfExperts(), "feed_forward_width": 64}, "no effect beside experts"),
        ({"experts": MixtureOfExperts(), "halting": Halting()}, "halting cannot take experts"),
        ({"experts": MixtureOfExperts(count=900, top_k=800)}, "leaves each no channel"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused_as_in_a_recipe(options, message):
    with pytest.raises(UserError, match=message):
        ResNetBKConfig(vocab_size=10, **options)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"halting": {}}, {"halting": Halting()}),
        ({"multiscale": {"layers": [1]}}, {"multiscale": Multiscale(layers=(1,))}),
        ({"attention": {"layers": [1]}}, {"attention": WindowedAttention(layers=(1,))}),
        ({"experts": {"count": 2, "top_k": 2}}, {"experts": MixtureOfExperts(count=2, top_k=2)}),
        ({"koopman": {}}, {"koopman": KoopmanObjective()}),
        ({"sparsity": {}}, {"sparsity": SiteSparsity()}),
        ({"d_model": "32", "n_layers": 2.0}, {"d_model": 32, "n_layers": 2}),
    ],
)
def test_options_may_be_written_as_in_a_recipe(given, meant):
    base = {"vocab_size": 10, "d_model": 32, "n_layers": 2, "n_heads": 4}
    written, built = ResNetBKConfig(**base | given), ResNetBKConfig(**base | meant)
    assert written == built
    shapes = [
        {name: tensor.shape for name, tensor in ResNetBK(each).state_dict().items()}
        for each in (written, built)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("size", ["50", 50.0, 0, None])
def test_a_vocabulary_is_an_integer(size):
    with pytest.raises(UserError, match="vocab_size must be an integer, at least 1, not"):
        ResNetBKConfig(vocab_size=size)


@pytest.mark.parametrize(
    ("mixer", "error"), [("spectral", 1e-5), ("gated", 1e-5), ("diagonal", 1e-5), ("potential", 1e-4)]
)
def test_decoding_stays_exact_on_long_text(mixer, error):
    """Six times the longest memory at the start; what is rounded in `potential` grows by 1/eta."""
    model = lively(KINDS[mixer]).eval()
    tokens = torch.randint(VOCABULARY, (1, 1536))
    state = model.initial_state(1)
    with torch.no_grad():
        expected = model(tokens)
        scale = float(expected.abs().max())
        for place in range(tokens.shape[1]):
            logits, state = model.step(tokens[:, place], state)
            torch.testing.assert_close(logits, expected[:, place], rtol=0, atol=error * scale)
