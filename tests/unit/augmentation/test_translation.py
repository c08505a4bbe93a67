"""Back-translation around any translator: origins, and what is dropped and why."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from bkray.augmentation import BackTranslation, build_augmentation
from bkray.augmentation.apertium import Apertium
from bkray.augmentation.hugging_face import HuggingFace
from bkray.config.preparation import BackTranslation as Section
from bkray.corpus import DOCUMENTS, stable_id

LONG = "the quick brown fox jumps over the lazy dog and runs away through the dark green woods"


class Words:
    """A translator that knows a few words, and keeps nothing of a text that says so."""

    def check(self):
        return None

    def forth(self, texts):
        return [text.replace("quick", "rápido").replace("woods", "bosque") for text in texts]

    def back(self, texts):
        returned = [text.replace("rápido", "fast").replace("bosque", "forest") for text in texts]
        return ["x" * len(text) if "lost" in text else text for text in returned]


def documents(texts):
    rows = [
        {"doc_id": stable_id("translate", i), "text": text, "source": f"s{i}", "split": "train"}
        for i, text in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows, schema=DOCUMENTS)


TABLE = documents([LONG, f"{LONG} lost", "no word of it is known", f"{LONG} indeed"])


def test_every_original_is_made_or_dropped_with_a_reason():
    attempts = BackTranslation(Words()).attempts(TABLE)
    assert attempts["parent_id"].equals(TABLE["doc_id"])
    assert attempts["dropped"].to_pylist() == [None, "wreck", "near copy", None]


def test_what_is_made_names_its_origin():
    made = BackTranslation(Words())(TABLE)
    assert made.schema == DOCUMENTS
    assert made["text"].to_pylist() == [
        text.replace("quick", "fast").replace("woods", "forest") for text in (LONG, f"{LONG} indeed")
    ]
    first, parent = made.to_pylist()[0], TABLE.to_pylist()[0]
    assert first["doc_id"] == stable_id(parent["doc_id"], "back_translation")
    assert (first["parent_id"], first["augmentation"]) == (parent["doc_id"], "back_translation")
    assert (first["source"], first["split"]) == (parent["source"], parent["split"])


def test_the_bounds_decide():
    everything = BackTranslation(Words(), lowest=0.0, highest=1.0).attempts(TABLE)["dropped"]
    assert everything.to_pylist() == [None, None, "near copy", None], "an equal text is never a copy"
    strict = BackTranslation(Words(), lowest=0.0, highest=0.5).attempts(TABLE)["dropped"].to_pylist()
    assert strict == ["near copy", None, "near copy", "near copy"]
    assert pc.count(BackTranslation(Words(), 0.9, 0.95).attempts(TABLE)["dropped"]).as_py() == 4
    with pytest.raises(ValueError, match=r"lowest 0.9 and highest 0.5"):
        BackTranslation(Words(), 0.9, 0.5)


@pytest.mark.parametrize("lost", ["", " \n"])
def test_a_blank_translation_is_a_wreck_whatever_the_limits(lost):
    everything = BackTranslation(Words(), lowest=0.0, highest=1.0)
    assert everything.fault(lost, LONG) == "wreck"
    assert everything.fault("x", LONG) is None, "as little in common, but text"


def test_built_from_the_recipe():
    usual = build_augmentation(Section(kind="back_translation"), 0)
    assert isinstance(usual, BackTranslation)
    assert isinstance(usual.translator, Apertium)
    assert usual.translator.modes == ("eng-spa", "spa-eng")
    section = Section.model_validate(
        {
            "kind": "back_translation",
            "translator": {"kind": "hugging_face", "forth": "a", "back": "b"},
            "lowest": 0.2,
            "highest": 0.8,
        }
    )
    other = build_augmentation(section, 0)
    assert (other.lowest, other.highest) == (0.2, 0.8)
    assert isinstance(other.translator, HuggingFace)
    assert other.translator.models == ("a", "b")
