"""What an actor adds to its windows; the stages themselves are in tests/ray."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from bkray.config import UserError, parse_recipe
from bkray.corpus import train_tokenizer
from bkray.corpus.windows import tokens_array
from bkray.difficulty import score_windows, sentence_length
from bkray.model import build_model
from bkray.runtime.scoring import Scorer, _Score
from bkray.training import export_model, load_model

MODEL = {"kind": "resnet_bk", "d_model": 16, "n_layers": 1, "n_heads": 4}
TEXT = "one two three. four\n\nfive six"


def scorer_of(tmp_path, names, std=0.3, **sections):
    """A scorer of an exported model of random weights, its table of two equal windows with a separator."""
    tokenizer = train_tokenizer([TEXT], 270)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids = [*tokenizer.encode(TEXT).ids, 0, *tokenizer.encode(TEXT).ids]
    window = len(ids) - 1
    base = {"name": "t", "corpus": {"kind": "docstrings"}, "window": window, "model": MODEL}
    recipe = parse_recipe({**base, "training": {"batch_tokens": 2 * window}, **sections})
    torch.manual_seed(0)
    model = build_model(recipe.model, 270)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    export_model(tmp_path / "model", model, recipe, tmp_path / "tokenizer.json", 270, {})
    tokens = pa.FixedSizeListArray.from_arrays(pa.array(np.array(ids * 2, dtype=np.int32)), len(ids))
    table = pa.table({"window_id": pa.array([3, 5]), "tokens": tokens})
    return Scorer(recipe, names, tmp_path / "tokenizer.json", tmp_path / "model", None, None), table


def test_scores_come_in_their_order_and_those_asked_for_once_more_under_their_use(tmp_path):
    asked = {"difficulty": {"kind": "perplexity"}, "curriculum": {}, "selection": {"kind": "random"}}
    names = ("compression", "loss", "perplexity", "random")
    scorer, table = scorer_of(tmp_path, names, **asked)
    scored = _Score(scorer)(table)
    assert scored.column_names == ["window_id", "tokens", *names, "difficulty", "uncertainty"]
    np.testing.assert_allclose(scored["difficulty"].to_numpy(), np.exp(scored["loss"].to_numpy()), rtol=1e-6)
    first, second = scored["uncertainty"].to_pylist()  # drawn by the window's id
    assert first != second
    assert _Score(scorer)(table.slice(1))["uncertainty"].to_pylist() == [second]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_scorer_says_what_the_products_are_in_wherever_it_scores(tmp_path, dtype):
    scorer, table = scorer_of(tmp_path, ("loss",))
    scored = _Score(replace(scorer, dtype=dtype))(table)
    model, tokens = load_model(scorer.model), tokens_array(table)
    expected = score_windows(model, tokens, dtype=dtype)["loss"]
    np.testing.assert_array_equal(scored["loss"].to_numpy(), expected)
    assert replace(scorer, dtype=dtype).said == {"dtype": str(dtype).removeprefix("torch.")}


def test_documents_in_a_window_are_sentences_of_their_own(tmp_path):
    scorer, table = scorer_of(tmp_path, ("sentence_length",))
    first_cut = TEXT[1:]  # the first token of a window is input only
    expected = sentence_length([f"{first_cut}\n\n{TEXT}"])[0]
    assert _Score(scorer)(table)["sentence_length"].to_pylist() == pytest.approx([expected] * 2)
    assert expected != sentence_length([first_cut + TEXT])[0]


@pytest.mark.parametrize(("std", "name"), [(1e30, "loss"), (10, "perplexity")])
def test_a_model_that_diverged_is_named_with_the_score_that_shows_it(tmp_path, std, name):
    scorer, table = scorer_of(tmp_path, ("loss", name), std=std)
    with pytest.raises(UserError, match=rf"model: 2 of 2 windows have no finite {name}: score with"):
        _Score(scorer)(table)


def test_an_embedding_that_its_column_does_not_hold_is_named(tmp_path):
    scorer, table = scorer_of(tmp_path, ("loss", "embedding"))
    actor = _Score(scorer)
    hidden = actor.model.hidden
    actor.model.hidden = lambda tokens_BN: 1e6 * hidden(tokens_BN)
    with pytest.raises(UserError, match=r"model: 2 of 2 windows have no finite embedding: score with"):
        actor(table)
