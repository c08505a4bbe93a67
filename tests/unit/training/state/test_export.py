"""Exported models: as they were, on longer sequences than they were trained on, and refused where damaged."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bkray.config import UserError, parse_recipe
from bkray.evaluation import window_nats
from bkray.model import build_model
from bkray.training import export_model, load_model
from bkray.training.state.export import write_export

ROOT = Path(__file__).parents[4]

VOCABULARY, WINDOW = 40, 24
BK = {"kind": "resnet_bk", "n_heads": 4}
KINDS = {
    "spectral": BK,
    "gated": {"kind": "resnet_bk", "mixer": "gated"},
    "potential": {**BK, "mixer": "potential"},
    "diagonal": {**BK, "mixer": "diagonal"},
    "windowed": {**BK, "attention": {"layers": [1], "window": 8}},
    "transformer": {"kind": "transformer"},
    "gru": {"kind": "gru"},
}


def exported(folder, kind):
    """The folder of a model of that kind, filled at random and trained, by its recipe, on WINDOW tokens."""
    recipe = parse_recipe(
        {
            "name": "t",
            "corpus": {"kind": "docstrings"},
            "window": WINDOW,
            "model": {"d_model": 32, "n_layers": 2, **KINDS[kind]},
            "training": {"batch_tokens": 8 * WINDOW},
        }
    )
    torch.manual_seed(0)
    model = build_model(recipe.model, VOCABULARY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    (folder / "tokenizer.json").write_text("{}")
    export_model(folder / "model", model, recipe, folder / "tokenizer.json", VOCABULARY, {})
    return folder / "model", model


@pytest.mark.parametrize("kind", KINDS)
def test_four_times_the_trained_window_works(tmp_path, kind):
    folder, original = exported(tmp_path, kind)
    model = load_model(folder)
    tokens = torch.randint(VOCABULARY, (2, 4 * WINDOW + 1))
    with torch.no_grad():
        short, long = original.eval()(tokens[:, :WINDOW]), model(tokens[:, :-1])
        state = model.initial_state(2)
        for site in range(4 * WINDOW):
            logits, state = model.step(tokens[:, site], state)
    assert long.isfinite().all()
    torch.testing.assert_close(long[:, :WINDOW], short, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits, long[:, -1], rtol=1e-4, atol=1e-4)
    assert window_nats(model, tokens).isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value):
    folder, _ = exported(tmp_path, "spectral")
    tensors = load_file(folder / "model.safetensors")
    tensors["blocks.1.feed_forward.up.weight"][3, 5] = value
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"parameter blocks.1.feed_forward.up.weight holds NaN or infinity"):
        load_model(folder)


def test_a_disk_that_takes_no_more_is_named_and_what_was_there_stays(tmp_path):
    """The limit of a file's size stands for a full disk; of a process of its own, as it cannot be raised."""
    write_export(tmp_path / "model", {"weights": torch.zeros(10)}, ROOT / "LICENSE", {})
    code = (
        "import pathlib, resource, sys, torch\n"
        "from bkray.config import UserError\n"
        "from bkray.training.state.export import write_export\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n"
        "try: write_export(pathlib.Path(sys.argv[1]), {'weights': torch.ones(1 << 16)}, 'LICENSE', {})\n"
        "except UserError as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert f"{tmp_path / 'model'} cannot be written: " in printed
    assert "free some space" in printed
    assert not load_file(tmp_path / "model" / "model.safetensors")["weights"].any()
