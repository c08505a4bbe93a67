"""Spoilt rows: what each kind does to a text, how many there are, and that they do not depend on batches."""

from collections import Counter

import pyarrow as pa
import pytest

from bkray.config import UserError
from bkray.corpus import stable_id
from bkray.corpus.contamination import KINDS, contaminate

DOCUMENTS = pa.table(
    {
        "doc_id": [stable_id(i) for i in range(2000)],
        "text": [" ".join(f"w{i}-{j}" for j in range(20 + i % 80)) for i in range(2000)],
    }
)


def pool(rows=1000, kinds=tuple(KINDS), share=0.5, seed=0):
    tables = [DOCUMENTS.slice(start, rows) for start in range(0, 2000, rows)]
    others = (f"other {number}" for number in range(2000))
    return pa.concat_tables(contaminate(tables, kinds, share, seed, others))


def test_the_clean_text_is_all_there_and_the_share_is_spoilt_in_equal_parts():
    rows = pool(share=0.4).to_pylist()
    clean = [row for row in rows if row["kind"] == "clean"]
    assert [(row["origin"], row["text"]) for row in clean] == list(
        zip(DOCUMENTS["doc_id"].to_pylist(), DOCUMENTS["text"].to_pylist(), strict=True)
    )
    counts = Counter(row["kind"] for row in rows)
    assert counts.keys() == {"clean", *KINDS}
    for kind in KINDS:
        assert counts[kind] == pytest.approx(0.1 * len(rows), rel=0.15)


def test_what_each_kind_does():
    texts = dict(zip(DOCUMENTS["doc_id"].to_pylist(), DOCUMENTS["text"].to_pylist(), strict=True))
    shares = Counter()
    for row in pool().to_pylist():
        words, before = row["text"].split(), texts.get(row["origin"], "").split()
        if row["kind"] == "near_duplicate":
            different = sum(a != b for a, b in zip(words, before, strict=True))
            assert different == max(1, round(row["changed"] * len(before)))
            shares[row["changed"]] += 1
        elif row["kind"] == "shuffled":
            assert words != before
            assert sorted(words) == sorted(before)
        elif row["kind"] == "boilerplate":
            assert 8 <= len(row["text"].splitlines()) <= 40
    assert shares.keys() == {0.05, 0.1, 0.2}
    assert min(shares.values()) > 100
    others = [row["text"] for row in pool().to_pylist() if row["kind"] == "off_domain"]
    assert others == [f"other {number}" for number in range(len(others))]


def test_the_seed_alone_decides():
    assert pool(rows=1000) == pool(rows=7)
    assert pool(seed=1) != pool(seed=0)
    alone = pool(kinds=("shuffled",), share=0.2).filter(pa.compute.field("kind") == "shuffled")
    beside = pool(share=0.5).filter(pa.compute.field("kind") == "shuffled")
    assert alone == beside  # a row of a kind a quarter of the documents in both


def test_no_kind_spoils_nothing():
    assert set(pool(kinds=())["kind"].to_pylist()) == {"clean"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.9}, r"share 0.9 is too much: at most 0.8 with 4 kinds"),
        ({"share": 1.0}, r"share 1 must lie between"),
        ({"kinds": ("off_domain",), "share": 0.5}, None),
    ],
)
def test_what_cannot_be_made(options, message):
    if message is None:
        with pytest.raises(UserError, match="ends before the corpus"):
            list(contaminate([DOCUMENTS], ["off_domain"], 0.5, 0, iter(["only one"])))
    else:
        with pytest.raises(UserError, match=message):
            pool(**options)


def test_words_are_replaced_by_those_of_the_document_before():
    texts = dict(zip(DOCUMENTS["doc_id"].to_pylist(), DOCUMENTS["text"].to_pylist(), strict=True))
    before = dict(zip(list(texts)[1:], texts.values(), strict=False))
    rows = [row for row in pool(kinds=("near_duplicate",)).to_pylist() if row["kind"] == "near_duplicate"]
    for row in rows:
        new = set(row["text"].split()) - set(texts[row["origin"]].split())
        assert new
        assert new <= set(before[row["origin"]].split())


def test_the_first_document_has_no_words_before_it_and_no_near_duplicate():
    for seed in range(20):
        (table,) = contaminate([DOCUMENTS.slice(0, 1)], ["near_duplicate"], 0.5, seed, iter(()))
        assert table["kind"].to_pylist() == ["clean"]


def test_documents_too_short_for_their_label_are_not_spoilt():
    short = pa.table({"doc_id": [1, 2, 3], "text": ["one", "a b c d", " ".join(map(str, range(19)))]})
    for seed in range(20):
        (table,) = contaminate([short], ["near_duplicate", "shuffled"], 0.6, seed, iter(()))
        assert table["kind"].to_pylist() == ["clean"] * 3
