"""What the actors of the soft targets do with their windows, and which teachers they refuse."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from bkray.config import UserError, parse_recipe
from bkray.corpus.schema import soft_targets_fields
from bkray.model import build_model
from bkray.runtime.distillation import _Ask, _cost
from bkray.training import export_model
from bkray.training.cost.flops import forward_flops
from bkray.training.techniques.distillation import soft_targets

VOCABULARY, WINDOW = 40, 6
RECIPE = parse_recipe(
    {
        "name": "t",
        "corpus": {"kind": "docstrings"},
        "model": {"kind": "resnet_bk", "d_model": 16, "n_layers": 1, "n_heads": 2},
    }
)
SCHEMA = pa.schema([pa.field("window_id", pa.int64()), *soft_targets_fields(WINDOW, 3, VOCABULARY)])


def teacher(tmp_path):
    torch.manual_seed(0)
    model = build_model(RECIPE.model, VOCABULARY).eval()
    (tmp_path / "tokenizer.json").write_text("{}")
    export_model(tmp_path / "model", model, RECIPE, tmp_path / "tokenizer.json", VOCABULARY, {})
    return tmp_path / "model", model


def windows():
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (2, WINDOW + 1)).astype(np.int32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(tokens.ravel()), WINDOW + 1)
    return tokens, pa.table({"window_id": [7, 3], "tokens": lists})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_soft_targets_take_the_place_of_the_tokens_in_the_precision_of_the_stage(tmp_path, dtype):
    (folder, model), (tokens, table) = teacher(tmp_path), windows()
    found = _Ask([folder], 3, SCHEMA, dtype)(table).cast(SCHEMA)
    ids, nats = soft_targets([model], tokens, 3, dtype)
    assert found["window_id"].to_pylist() == [7, 3]
    assert found["soft_ids"].to_pylist() == ids.reshape(2, -1).tolist()
    assert found["soft_log_probs"].to_pylist() == nats.reshape(2, -1).tolist()


def test_a_teacher_that_diverged_is_named(tmp_path):
    ask = _Ask([teacher(tmp_path)[0]], 3, SCHEMA, torch.float32)
    with torch.no_grad():
        ask.teachers[0].embedding.weight[5] = torch.nan
    with pytest.raises(UserError, match=r"predictions of .*model are not all finite: name models"):
        ask(windows()[1])


def test_a_teacher_of_another_width_than_its_vocabulary_is_refused(tmp_path):
    folder, model = teacher(tmp_path)
    assert _cost(folder, VOCABULARY, WINDOW) == (forward_flops(model, WINDOW), 1)
    with pytest.raises(UserError, match=r"predicts 40 tokens, its tokenizer has 39: name a"):
        _cost(folder, VOCABULARY - 1, WINDOW)
