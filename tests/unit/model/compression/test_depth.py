import pytest
import torch
from torch import nn

from bkray.config import UserError
from bkray.config.model import Halting, ResNetBKModel
from bkray.model import build_model
from bkray.model.compression import keep_layers

TOKENS = torch.arange(120).remainder(37).view(4, 30)


def built(**keys):
    section = ResNetBKModel(kind="resnet_bk", d_model=32, **keys)
    torch.manual_seed(0)
    model = build_model(section, 40).eval()
    with torch.no_grad():  # at first every layer writes zeros
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, section.model_dump(mode="json")


def shortened(model, section, count):
    tensors, changes = keep_layers(model, section, model.state_dict(), count)
    smaller = build_model(ResNetBKModel(**{**section, **changes}), 40).eval()
    smaller.load_state_dict(tensors)
    return smaller


@pytest.mark.parametrize(
    ("there", "count", "kept"), [(4, 2, [0, 3]), (5, 3, [0, 2, 4]), (6, 1, [0]), (4, 3, [0, 2, 3])]
)
def test_the_layers_kept_are_the_first_the_last_and_evenly_between(there, count, kept):
    model, section = built(n_layers=there)
    smaller = shortened(model, section, count)
    model.blocks = nn.ModuleList(model.blocks[number] for number in kept)
    with torch.no_grad():
        assert torch.equal(smaller(TOKENS), model(TOKENS))


def test_layers_that_write_nothing_are_not_missed():
    model, section = built(n_layers=4)
    with torch.no_grad():
        for number in (1, 2):
            for parameter in model.blocks[number].parameters():
                parameter.zero_()
        expected = model(TOKENS)
        torch.testing.assert_close(shortened(model, section, 2)(TOKENS), expected)


@pytest.mark.parametrize(("layers", "left"), [((1, 3), [1]), ((1, 2), None)])
def test_attention_stays_with_its_layers(layers, left):
    model, section = built(n_layers=4, attention={"layers": layers, "window": 8})
    _, changes = keep_layers(model, section, model.state_dict(), 2)
    assert (changes["attention"] and changes["attention"]["layers"]) == left
    smaller = shortened(model, section, 2)
    model.blocks = nn.ModuleList([model.blocks[0], model.blocks[3]])
    with torch.no_grad():
        assert torch.equal(smaller(TOKENS), model(TOKENS))


@pytest.mark.parametrize(
    "others", [{"mixer": "gated", "longest_memory": 99.0, "sparsity": {}}, {"n_heads": 8}]
)
def test_attention_in_all_layers_that_are_kept_leaves_nothing_of_other_mixers(others):
    model, section = built(n_layers=4, attention={"layers": (0, 3), "window": 8}, **others)
    smaller = shortened(model, section, 2)
    model.blocks = nn.ModuleList([model.blocks[0], model.blocks[3]])
    with torch.no_grad():
        assert torch.equal(smaller(TOKENS), model(TOKENS))


@pytest.mark.parametrize("count", [0, 4, 9])
def test_a_number_that_takes_no_layer_or_all_is_refused(count):
    model, section = built(n_layers=4)
    with pytest.raises(UserError, match=f"layers:{count} of 4: give a number from 1 to 3"):
        keep_layers(model, section, model.state_dict(), count)


def test_a_single_layer_stays():
    model, section = built(n_layers=1)
    with pytest.raises(UserError, match="layers:1: the model has a single layer"):
        keep_layers(model, section, model.state_dict(), 1)


def test_models_whose_layers_have_duties_are_refused():
    model, section = built(n_layers=4, halting=Halting(first_layer=1))
    with pytest.raises(UserError, match=r"layers cannot take model\.halting"):
        keep_layers(model, section, model.state_dict(), 2)
    with pytest.raises(UserError, match="bkray's own models"):
        keep_layers(nn.Linear(2, 2), {}, {}, 1)
