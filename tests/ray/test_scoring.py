"""Scores of given models, the most uncertain of every cluster, held-out scores: as they are defined."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from bkray.config import UserError, load_recipe
from bkray.config.model import ResNetBKModel
from bkray.corpus.windows import embedding_array, read_columns, tokens_array
from bkray.difficulty import score_windows, scoring_dtype, windows_a_pass
from bkray.model import build_model
from bkray.reporting.progress import Progress
from bkray.runtime import scoring, stages
from bkray.runtime.pipeline import build_stage, plan_run, run_pipeline
from bkray.selection import MEASURES, Clusters, dropout_masks, quotas
from bkray.training import export_model, load_model
from bkray.training.cost.flops import forward_flops, head_flops
from bkray.training.state.export import write_export

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("two_cpus")]

PLAIN = ["curriculum={}", "sampling=null", "augmentation=[]", "training.trackers=[]"]
QUIET = Progress(Console(quiet=True))


def run(recipe, out, until="training_set"):
    """The artifacts up to a stage; a test's runs share what they have in common."""
    artifacts = out.parent / "artifacts"
    return run_pipeline(recipe, out, until=until, progress=QUIET, artifacts=artifacts).artifacts


@pytest.fixture
def models(small, tmp_path):
    """Two exported models of random weights with the tokenizer of the small corpus, and their recipe."""
    recipe = load_recipe(
        small, [*PLAIN, "difficulty=null", "curriculum=null", "selection=null", "proxy=null"]
    )
    tokenizer = run(recipe, tmp_path / "first", "tokenizer")["tokenizer"].path / "tokenizer.json"
    torch.manual_seed(0)
    folders = []
    for name, width in (("scorer", 16), ("reference", 32)):
        section = ResNetBKModel(kind="resnet_bk", d_model=width, n_layers=1, n_heads=4)
        model = build_model(section, 300)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        export_model(tmp_path / name, model, recipe.model_copy(update={"model": section}), tokenizer, 300, {})
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


def most_uncertain_of_every_cluster(ids, uncertainty, embeddings, keep, seed):
    """The ids that are kept, and rows and quota of every cluster, from all rows at once."""
    clusters = Clusters.fit(embeddings, 3, seed).assign(embeddings)
    sizes = dict(enumerate(np.bincount(clusters).tolist()))
    wanted = quotas(sizes, keep)
    order = np.lexsort((ids, -uncertainty))
    kept = [order[clusters[order] == cluster][:quota] for cluster, quota in wanted.items()]
    return np.sort(ids[np.concatenate(kept)]), [
        [sizes[cluster], wanted[cluster]] for cluster in sorted(sizes)
    ]


def test_given_models_score_and_the_most_uncertain_of_every_cluster_are_kept(
    small, models, tmp_path, monkeypatch
):
    recipe, (model, reference) = diverse(small, models), map(load_model, models)
    built = run(recipe, tmp_path / "usual")
    scored = pa.concat_tables(pq.read_table(part) for part in built["scored"].parts)
    tokens, masks = tokens_array(scored), dropout_masks(4, 16, 0.3, recipe.seed)
    expected = score_windows(model, tokens, embedding=True, masks_TD=masks)
    reducible = expected["loss"] - score_windows(reference, tokens)["loss"]
    np.testing.assert_array_equal(scored["difficulty"].to_numpy(), reducible)
    np.testing.assert_array_equal(scored["uncertainty"].to_numpy(), expected["variation_ratio"])
    np.testing.assert_array_equal(embedding_array(scored), expected["embedding"].astype(np.float16))

    assert built["scored"].manifest["details"]["dtype"] in str(scoring_dtype(torch.device("cpu")))

    keep = round(0.6 * len(tokens))
    ids, shares = most_uncertain_of_every_cluster(
        scored["window_id"].to_numpy(),
        expected["variation_ratio"],
        embedding_array(scored),
        keep,
        recipe.seed,
    )
    selected = read_columns(built["selected"].parts, ["window_id"])["window_id"].to_numpy()
    np.testing.assert_array_equal(selected, ids)
    assert built["selected"].manifest["details"]["clusters"] == shares
    assert "embedding" not in pq.read_schema(built["training_set"].parts[0]).names

    a_window = forward_flops(model, 48) + 4 * head_flops(model, 48) + forward_flops(reference, 48)
    charged = {name: built[name].manifest["ledger"] for name in ("scored", "selected")}
    assert charged["scored"]["scoring"]["flops"] == pytest.approx(len(tokens) * a_window)
    assert charged["selected"]["clustering"]["flops"] > 0
    median = np.quantile(expected["loss"], 0.5, method="inverted_cdf")
    assert built["scored"].manifest["details"]["quantiles"]["loss"]["0.5"] == pytest.approx(median, rel=2**-8)

    before = parts_of(built, "scored", "selected")
    for name in ("scored", "selected"):
        shutil.rmtree(built[name].path)
    scored_blocks = []

    def noting_blocks(dataset, *where):
        dataset = dataset.materialize()
        blocks = [block for bundle in dataset.iter_internal_ref_bundles() for block in bundle.blocks]
        scored_blocks.extend(block.metadata.num_rows for block in blocks)
        return stages.write_parts(dataset, *where)

    monkeypatch.setattr(scoring, "write_parts", noting_blocks)
    monkeypatch.setattr(stages, "_BLOCK_FLOPS", 5.5 * a_window)
    assert parts_of(run(recipe, tmp_path / "usual", "selected"), "scored", "selected") == before
    assert max(scored_blocks) == windows_a_pass(model, 48), "a slow model's blocks are one pass"


def test_a_selection_of_all_windows_is_refused_before_they_are_scored(small, models, tmp_path):
    with pytest.raises(UserError, match=r"selection.keep 0.9999 of \d+ windows is all of them"):
        run(diverse(small, models, "selection.keep=0.9999"), tmp_path / "run", until="scored")


def parts_of(built, *names):
    return [part.read_bytes() for name in names for part in built[name].parts]


def test_held_out_windows_are_scored_in_every_way_that_takes_no_pass_of_its_own(small, models, tmp_path):
    recipe, (model, reference) = diverse(small, models), map(load_model, models)
    built = run(recipe, tmp_path / "usual", "windows")
    plan = plan_run(recipe, tmp_path / "usual", tmp_path / "artifacts")
    held_out = build_stage(plan, plan.stages["held_out_scores"], built, 2, QUIET)  # needs no trained model
    found = pq.read_table(held_out.parts[0])
    test = read_columns(built["windows"].parts, ["window_id", "tokens"], "test")
    assert found["window_id"].equals(test["window_id"])
    masks = dropout_masks(4, 16, 0.3, recipe.seed)
    expected = score_windows(model, tokens_array(test), list(MEASURES), masks_TD=masks)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name].to_numpy(), values)
    others = {"window_id", "compression", "rarity", "sentence_length", "reducible"}
    assert set(found.column_names) == others | set(expected)
    a_window = forward_flops(model, 48) + 4 * head_flops(model, 48) + forward_flops(reference, 48)
    assert held_out.manifest["ledger"]["skill"]["flops"] == pytest.approx(test.num_rows * a_window)


def test_models_of_other_vocabularies_and_without_states_are_refused_before_anything_runs(
    small, models, tmp_path
):
    scorer, reference = models
    tokenizer = json.loads((reference / "tokenizer.json").read_text())
    tokenizer["model"]["dropout"] = 0.5
    other = tmp_path / "other.json"
    other.write_text(json.dumps(tokenizer))
    config = json.loads((reference / "config.json").read_text())
    write_export(reference, load_file(reference / "model.safetensors"), other, config)
    with pytest.raises(UserError, match=r"difficulty.reference .* has another vocabulary than proxy.folder"):
        run(diverse(small, models), tmp_path / "run")
    logits_alone = {"kind": "import", "target": "torch.nn:Embedding", "arguments": {"embedding_dim": 300}}
    config, weights = {"model": logits_alone, "vocab_size": 300}, {"weight": torch.zeros(300, 300)}
    write_export(scorer, weights, shutil.copy(scorer / "tokenizer.json", tmp_path), config)
    with pytest.raises(
        UserError, match=r"proxy.folder .* Embedding has no hidden\(tokens\) and head\(hidden\)"
    ):
        run(diverse(small, models), tmp_path / "run")
    with pytest.raises(UserError, match="holds no exported model"):
        run(diverse(small, [tmp_path / "nowhere", reference]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
