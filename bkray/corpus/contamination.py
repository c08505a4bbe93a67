"""Text spoilt on purpose: the raw pool against which filters are judged, every row labelled.

    documents ─► each as it is, and by chance a spoilt row beside it ─► {text, kind, changed, origin}

Draws are keyed by the seed, the kind and the document's id. Near-duplicates and shuffled rows are made of
documents of FEWEST words and more: of fewer, another share would be replaced, or the same text come out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from bkray.config import UserError
from bkray.corpus.schema import row_rng

CLEAN = "clean"
CHANGED = (0.05, 0.1, 0.2)
"""Shares of the words that are replaced in near-duplicates, each equally often."""
FEWEST = 20
"""Words of which the least of these shares is one."""

POOL = pa.schema(
    [
        pa.field("text", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # clean, or a name in KINDS
        pa.field("changed", pa.float64(), nullable=False),  # share of replaced words (near_duplicate)
        pa.field("origin", pa.int64()),  # doc_id in the corpus; null where the text is not of it
    ]
)

_BOILERPLATE = """\
Skip to main content
Home
About us
Contact
Search
Menu
Log in
Sign up
My account
Shopping cart
Checkout
All rights reserved.
Privacy policy
Terms of service
Cookie settings
Accept all cookies
We use cookies to give you the best experience on our website.
Subscribe to our newsletter
Read more
Share on Facebook
Share on Twitter
Follow us on Instagram
Leave a comment
Your email address will not be published.
Required fields are marked *
Related articles
Previous post
Next post
Back to top
Load more
Free shipping on all orders over $50
Add to cart
Out of stock
Customer reviews
Frequently asked questions
Powered by WordPress
Please enable JavaScript to view this page.
Click here to download
Print this page
Report abuse
Advertisement
Sponsored content
Copyright © 2019
""".splitlines()


def near_duplicate(text: str, share: float, words: Sequence[str], rng: np.random.Generator) -> str:
    """`text` with a share of its words, at least one, replaced by some of `words`; gaps become spaces."""
    kept = text.split()
    places = rng.choice(len(kept), max(1, round(share * len(kept))), replace=False)
    for place, other in zip(places, rng.choice(len(words), len(places)), strict=True):
        kept[place] = words[other]
    return " ".join(kept)


def shuffled(text: str, rng: np.random.Generator) -> str:
    """The words of `text` in another order."""
    words = text.split()
    return " ".join(words[place] for place in rng.permutation(len(words)))


def boilerplate(rng: np.random.Generator) -> str:
    """8 to 40 lines that stand around the text of web pages."""
    return "\n".join(_BOILERPLATE[line] for line in rng.integers(len(_BOILERPLATE), size=rng.integers(8, 41)))


def contaminate(
    documents: Iterable[pa.Table], kinds: Sequence[str], share: float, seed: int, others: Iterator[str]
) -> Iterator[pa.Table]:
    """Tables of documents to tables of a raw pool (POOL), a share `share` of it spoilt.

    Each of `kinds` (of KINDS; none: every row is clean) makes an equal part of it. Replaced words come from
    the document before, so that the first has no near-duplicate; texts of kind `off_domain` are the next of
    `others`. UserError where these end.
    """
    probability = _probability(kinds, share) if kinds else 0.0
    words: list[str] = []
    for table in documents:
        rows: list[dict] = []
        for doc_id, text in zip(table["doc_id"].to_pylist(), table["text"].to_pylist(), strict=True):
            rows.append({"text": text, "kind": CLEAN, "changed": 0.0, "origin": doc_id})
            for kind in kinds:
                rng = row_rng(seed, kind, doc_id)
                if rng.random() < probability and _can_be_spoilt(kind, text, words):
                    row = {"kind": kind, "changed": 0.0, "origin": doc_id}
                    rows.append(row | KINDS[kind](text, words, others, rng))
            words = text.split()
        yield pa.Table.from_pylist(rows, schema=POOL)


def _can_be_spoilt(kind: str, text: str, words: Sequence[str]) -> bool:
    """Of the first document there are no `words` of one before."""
    if kind not in ("near_duplicate", "shuffled"):
        return True
    return len(text.split()) >= FEWEST and (kind == "shuffled" or bool(words))


def _probability(kinds: Sequence[str], share: float) -> float:
    """Of a spoilt row of one kind beside each document."""
    if not 0 < share < 1:
        raise UserError(f"--share {share:g} must lie between 0 and 1")
    probability = share / (1 - share) / len(kinds)
    if probability > 1:
        most = len(kinds) / (len(kinds) + 1)
        raise UserError(f"--share {share:g} is too much: at most {most:.2g} with {len(kinds)} kinds")
    return probability


_Row = dict[str, Any]


def _near_duplicate(text: str, words: Sequence[str], others: Iterator[str], rng: np.random.Generator) -> _Row:
    share = CHANGED[rng.integers(len(CHANGED))]
    return {"text": near_duplicate(text, share, words, rng), "changed": share}


def _shuffled(text: str, words: Sequence[str], others: Iterator[str], rng: np.random.Generator) -> _Row:
    return {"text": shuffled(text, rng)}


def _off_domain(text: str, words: Sequence[str], others: Iterator[str], rng: np.random.Generator) -> _Row:
    other = next(others, None)
    if other is None:
        raise UserError(
            "the text of other domains ends before the corpus: bring more by --off-domain, or lower --share"
        )
    return {"text": other, "origin": None}


def _boilerplate(text: str, words: Sequence[str], others: Iterator[str], rng: np.random.Generator) -> _Row:
    return {"text": boilerplate(rng), "origin": None}


KINDS: dict[str, Callable[[str, Sequence[str], Iterator[str], np.random.Generator], _Row]] = {
    "near_duplicate": _near_duplicate,
    "off_domain": _off_domain,
    "shuffled": _shuffled,
    "boilerplate": _boilerplate,
}
