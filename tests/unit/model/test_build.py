"""build_model: the recipe's kinds, and errors that name the target."""

import pytest
import torch

from bkray.config import UserError
from bkray.config.model import ImportModel, ResNetBKModel, TransformerModel
from bkray.model import build_model

USER_MODULE = """
from torch import nn

def build(vocab_size, width):
    return nn.Sequential(nn.Embedding(vocab_size, width), nn.Linear(width, vocab_size))

def count(vocab_size):
    return vocab_size

number = 3
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "bkray_user_model.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "bkray_user_model"


@pytest.mark.parametrize(
    "section",
    [
        ResNetBKModel(kind="resnet_bk", d_model=32, n_layers=3, n_heads=8),
        TransformerModel(kind="transformer", d_model=32, n_layers=3, n_heads=2),
    ],
)
def test_own_kinds_take_the_sizes_of_the_recipe(section):
    model = build_model(section, vocab_size=300)
    assert model(torch.tensor([[0, 299]])).shape == (1, 2, 300)
    assert len(model.blocks) == 3
    assert model.config.n_heads == section.n_heads


def test_imported_model(user_module):
    section = ImportModel(kind="import", target=f"{user_module}:build", arguments={"width": 8})
    assert build_model(section, vocab_size=11)(torch.tensor([[1, 2, 3]])).shape == (1, 3, 11)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_package_here.module:build", "importing no_such_package_here.module failed"),
        ("bkray_user_model:builder", "has no function builder"),
        ("bkray_user_model:number", "has no function number"),
        ("bkray_user_model:count", "returned int, not a torch.nn.Module"),
        ("bkray_user_model:build", "width"),
    ],
)
def test_failures_name_the_target(user_module, target, message):
    with pytest.raises(UserError, match=message) as caught:
        build_model(ImportModel(kind="import", target=target), vocab_size=11)
    assert target in str(caught.value)
