"""Every original gives one augmented document of a kind, or is dropped with a reason; both are counted."""

import os
from collections import Counter

import nltk
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from bkray.augmentation import wordnet
from bkray.augmentation.apertium import Apertium
from bkray.config import UserError, load_recipe
from bkray.reporting.progress import Progress
from bkray.runtime import prepare
from bkray.runtime.exits import find_user_error
from bkray.runtime.pipeline import run_pipeline

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("two_cpus")]

try:
    Apertium().check()
    HERE = True
except UserError:
    HERE = False
MISSING = wordnet.missing_data()


def augmented(path, out, *overrides):
    """The documents that were there, those that were made, and what the stage says of them."""
    plain = ["difficulty=null", "selection=null", "proxy=null", "curriculum=null", "sampling=null"]
    recipe = load_recipe(path, [*plain, *overrides])
    built = run_pipeline(recipe, out, until="augmented", progress=Progress(Console(quiet=True))).artifacts
    tables = [pa.concat_tables(map(pq.read_table, built[name].parts)) for name in ("documents", "augmented")]
    return *tables, built["augmented"].manifest


def test_twice_the_documents_is_one_for_each_original(small, tmp_path):
    there, made, manifest = augmented(small, tmp_path, "augmentation=[{kind: deletion, probability: 0.005}]")
    originals = {row["doc_id"]: row["text"] for row in there.to_pylist() if row["split"] == "train"}
    assert Counter(made["parent_id"].to_pylist()) == Counter(originals.keys())
    assert set(made["split"].to_pylist()) == {"train"}
    unchanged = sum(row["text"] == originals[row["parent_id"]] for row in made.to_pylist())
    assert 0 < unchanged < len(originals)
    count = len(originals)
    counts = {"kind": "deletion", "originals": count, "made": count, "unchanged": unchanged, "dropped": {}}
    assert manifest["details"]["augmentation"] == [counts]
    assert f"deletion {count} of {count}, {unchanged} of them unchanged" in manifest["summary"]


def test_every_kind_draws_its_own_originals(small, tmp_path):
    """The first as it does alone, so that a second one changes nothing of it."""
    first, second = "{kind: deletion, share: 0.5}", "{kind: swap, share: 0.5}"
    there, both, _ = augmented(small, tmp_path / "both", f"augmentation=[{first}, {second}]")
    _, alone, _ = augmented(small, tmp_path / "alone", f"augmentation=[{first}]")
    taken = {
        kind: {row["parent_id"] for row in both.to_pylist() if row["augmentation"] == kind}
        for kind in ("deletion", "swap")
    }
    assert taken["deletion"] == set(alone["parent_id"].to_pylist())
    count = there["split"].to_pylist().count("train")
    common = len(taken["deletion"] & taken["swap"])
    assert 0.35 * count < len(taken["swap"]) < 0.65 * count
    assert 0.1 * count < common < 0.4 * count


@pytest.mark.skipif(not HERE, reason="Apertium's eng-spa is not here: apertium-eng-spa")
def test_back_translation_and_what_it_drops(small, tmp_path, monkeypatch):
    """The bounds stand so that some of these word salads are dropped at either end."""
    sections = (
        "[{kind: back_translation, share: 0.5, lowest: 0.61, highest: 0.635}, {kind: swap, share: 0.5}]"
    )
    _, made, manifest = augmented(small, tmp_path / "usual", f"augmentation={sections}")
    translated, swapped = manifest["details"]["augmentation"]
    assert (translated["kind"], swapped["kind"]) == ("back_translation", "swap")
    assert swapped["originals"] == swapped["made"]
    assert translated["made"] + sum(translated["dropped"].values()) == translated["originals"]
    assert translated["dropped"].keys() == {"near copy", "wreck"}
    kinds = Counter(made["augmentation"].to_pylist())
    assert kinds == {"back_translation": translated["made"], "swap": swapped["made"]}
    assert manifest["removed"] == sum(translated["dropped"].values())
    monkeypatch.setattr(prepare, "_MOST_DOCUMENTS", 20)
    assert made.equals(augmented(small, tmp_path / "other", f"augmentation={sections}")[1])


def test_a_translator_that_a_worker_lacks_is_one_message(small, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "joined")  # as in a submitted job: workers have it, or not
    translator = "{kind: apertium, forth: eng-tlh, back: tlh-eng}"
    with pytest.raises(Exception, match="Apertium") as caught:
        augmented(small, tmp_path, f"augmentation=[{{kind: back_translation, translator: {translator}}}]")
    assert "cannot translate eng-tlh with Apertium" in str(find_user_error(caught.value))


@pytest.mark.skipif(bool(MISSING), reason=f"nltk's {' and '.join(MISSING)} are not here: bkray fetch wordnet")
def test_synonyms_change_documents_and_a_worker_loads_them_once(small, tmp_path, monkeypatch):
    workers = tmp_path / "workers"
    workers.mkdir()

    def note(what):
        with (workers / str(os.getpid())).open("a") as file:
            file.write(f"{what}\n")

    class Noted(wordnet.Thesaurus):
        def __init__(self):
            note("thesaurus")
            super().__init__()

    class Watched(prepare._Augment):
        """Notes in a file of its process each thesaurus that is loaded there, and each block that is done."""

        def __init__(self, recipe):
            wordnet.Thesaurus = Noted
            super().__init__(recipe)

        def __call__(self, documents):
            yield from super().__call__(documents)
            note("block")

    monkeypatch.setattr(prepare, "_Augment", Watched)
    monkeypatch.setattr(prepare, "_FEWEST_DOCUMENTS", 4)
    there, made, manifest = augmented(small, tmp_path, "augmentation=[{kind: synonym, probability: 0.3}]")
    originals = dict(zip(there["doc_id"].to_pylist(), there["text"].to_pylist(), strict=True))
    pairs = [(row["text"].split(), originals[row["parent_id"]].split()) for row in made.to_pylist()]
    changed = Counter(word != old for new, text in pairs for word, old in zip(new, text, strict=True))
    assert 0.02 < changed[True] / changed.total() < 0.3
    (counts,) = manifest["details"]["augmentation"]
    assert counts["made"] == len(pairs)
    assert counts["unchanged"] == sum(new == text for new, text in pairs) < len(pairs) / 10
    noted = [Counter(path.read_text().split()) for path in workers.iterdir()]
    assert 1 <= len(noted) <= 2
    assert all(worker["thesaurus"] == 1 for worker in noted)
    assert sum(worker["block"] for worker in noted) >= 8


def test_a_worker_that_lacks_wordnet_names_the_ways_to_it_and_fetches_nothing(small, tmp_path, monkeypatch):
    nothing = tmp_path / "nothing"
    nothing.mkdir()

    class Bare(prepare._Augment):
        """In a process where nltk looks into that folder alone."""

        def __init__(self, recipe):
            nltk.data.path[:] = [str(nothing)]
            super().__init__(recipe)

    monkeypatch.setattr(prepare, "_Augment", Bare)
    monkeypatch.setenv("RAY_ADDRESS", "joined")  # as in a submitted job: workers have it, or not
    with pytest.raises(Exception, match="WordNet") as caught:
        augmented(small, tmp_path, "augmentation=[{kind: synonym}]")
    said = str(find_user_error(caught.value))
    for way in ("set NLTK_DATA to a folder", "run `bkray fetch wordnet`", "`bkray fetch wordnet --deb FILE`"):
        assert way in said
    assert not list(nothing.iterdir())
