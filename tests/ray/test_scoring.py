"""Scores of given models, the most uncertain of every cluster, held-out scores: as they are defined."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from bkray.config import UserError, load_recipe
from bkray.config.model import ResNetBKModel
from bkray.corpus.windows import embedding_array, read_columns, tokens_array
from bkray.difficulty import score_windows
from bkray.model import build_model
from bkray.reporting.progress import Progress
from bkray.runtime import scoring
from bkray.runtime.pipeline import build_stage, plan_run, run_pipeline
from bkray.selection import MEASURES, Clusters, dropout_masks, quotas
from bkray.training import export_model, load_model
from bkray.training.cost.flops import forward_flops, head_flops

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("four_cpus")]

PLAIN = ["curriculum={}", "sampling=null", "augmentation=[]", "training.trackers=[]"]
QUIET = Progress(Console(quiet=True))


def run(recipe, out, until="training_set"):
    return run_pipeline(recipe, out, until=until, progress=QUIET)


@pytest.fixture
def models(small, tmp_path):
    """Two exported models of random weights with the tokenizer of the small corpus, and their recipe."""
    recipe = load_recipe(
        small, [*PLAIN, "difficulty=null", "curriculum=null", "selection=null", "proxy=null"]
    )
    tokenizer = run(recipe, tmp_path / "first", "tokenizer").artifacts["tokenizer"].path / "tokenizer.json"
    torch.manual_seed(0)
    folders = []
    for name, width in (("scorer", 16), ("reference", 32)):
        model = build_model(ResNetBKModel(kind="resnet_bk", d_model=width, n_layers=1, n_heads=4), 300)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        kept = recipe.model_copy(
            update={"model": ResNetBKModel(kind="resnet_bk", d_model=width, n_layers=1, n_heads=4)}
        )
        export_model(tmp_path / name, model, kept, tokenizer, 300, {})
        folders.append(tmp_path / name)
    return folders


def diverse(small, models, *more):
    scorer, reference = models
    asked = [
        "tokenizer={}",
        f"proxy={{folder: {scorer}}}",
        f"difficulty={{kind: reducible, reference: {reference}}}",
        "selection={kind: variation_ratio, keep: 0.6, passes: 4, dropout: 0.3, diversity: {clusters: 3}}",
    ]
    return load_recipe(small, [*PLAIN, *asked, *more])


def test_given_models_score_and_the_most_uncertain_of_every_cluster_are_kept(
    small, models, tmp_path, monkeypatch
):
    recipe = diverse(small, models)
    usual = run(recipe, tmp_path / "usual").artifacts
    scored = read_columns(usual["scored"].parts, pq.read_schema(usual["scored"].parts[0]).names)
    model, reference = (load_model(folder) for folder in models)
    masks = dropout_masks(4, 16, 0.3, recipe.seed)
    tokens = tokens_array(scored)
    expected = score_windows(model, tokens, embedding=True, masks_TD=masks)
    reducible = expected["loss"] - score_windows(reference, tokens)["loss"]
    np.testing.assert_array_equal(scored["difficulty"].to_numpy(), reducible)
    np.testing.assert_array_equal(scored["uncertainty"].to_numpy(), expected["variation_ratio"])
    np.testing.assert_array_equal(embedding_array(scored), expected["embedding"].astype(np.float16))

    clusters = Clusters.fit(embedding_array(scored), 3, recipe.seed).assign(embedding_array(scored))
    sizes = {
        int(cluster): int(count)
        for cluster, count in zip(*np.unique(clusters, return_counts=True), strict=True)
    }
    wanted = quotas(sizes, round(0.6 * len(tokens)))
    order = np.lexsort((scored["window_id"].to_numpy(), -expected["variation_ratio"]))
    kept = [row for cluster, quota in wanted.items() for row in order[clusters[order] == cluster][:quota]]
    ids = scored["window_id"].to_numpy()[np.sort(kept)]
    selected = read_columns(usual["selected"].parts, ["window_id", "uncertainty"])
    np.testing.assert_array_equal(selected["window_id"].to_numpy(), ids)
    assert usual["selected"].manifest["details"]["clusters"] == [[sizes[c], wanted[c]] for c in sorted(sizes)]
    assert "embedding" not in pq.read_schema(usual["training_set"].parts[0]).names

    a_window = forward_flops(model, 48) + 4 * head_flops(model, 48) + forward_flops(reference, 48)
    assert usual["scored"].manifest["ledger"]["scoring"]["flops"] == pytest.approx(len(tokens) * a_window)
    assert usual["selected"].manifest["ledger"]["clustering"]["flops"] > 0
    quantiles = usual["scored"].manifest["details"]["quantiles"]["loss"]
    assert quantiles["0.5"] == pytest.approx(
        np.quantile(expected["loss"], 0.5, method="inverted_cdf"), rel=2**-8
    )

    monkeypatch.setattr(scoring, "_SCORE_BATCH", 5)
    monkeypatch.setattr(scoring, "_BLOCK_ROWS", 23)
    other = run(recipe, tmp_path / "other", "selected").artifacts
    for name in ("scored", "selected"):
        for one, again in zip(usual[name].parts, other[name].parts, strict=True):
            assert one.read_bytes() == again.read_bytes()

    held_out = held_out_of(recipe, tmp_path / "usual", usual)
    table = pq.read_table(held_out.parts[0])
    test = read_columns(usual["windows"].parts, ["window_id", "tokens"], "test")
    assert table["window_id"].equals(test["window_id"])
    again = score_windows(model, tokens_array(test), list(MEASURES), masks_TD=masks)
    for name, values in again.items():
        np.testing.assert_array_equal(table[name].to_numpy(), values)
    assert set(table.column_names) - set(again) == {
        "window_id",
        "compression",
        "rarity",
        "sentence_length",
        "reducible",
    }
    assert held_out.manifest["ledger"]["skill"]["flops"] == pytest.approx(test.num_rows * a_window)


def held_out_of(recipe, out, built):
    """The stage of the held-out scores alone: it needs no trained model."""
    plan = plan_run(recipe, out)
    return build_stage(plan, plan.stages["held_out_scores"], built, 2, QUIET)


def test_models_of_other_vocabularies_and_without_states_are_refused_before_anything_runs(
    small, models, tmp_path
):
    scorer, reference = models
    tokenizer = json.loads((reference / "tokenizer.json").read_text())
    tokenizer["model"]["dropout"] = 0.5
    (reference / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=r"difficulty.reference .* has another vocabulary than proxy.folder"):
        run(diverse(small, models), tmp_path / "run")
    logits_alone = {"kind": "import", "target": "torch.nn:Embedding", "arguments": {"embedding_dim": 300}}
    (scorer / "config.json").write_text(json.dumps({"model": logits_alone, "vocab_size": 300}))
    with pytest.raises(
        UserError, match=r"proxy.folder .* Embedding has no hidden\(tokens\) and head\(hidden\)"
    ):
        run(diverse(small, models), tmp_path / "run")
    with pytest.raises(UserError, match="holds no exported model"):
        run(diverse(small, [tmp_path / "nowhere", reference]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
