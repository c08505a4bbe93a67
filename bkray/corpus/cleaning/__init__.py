"""What is kept out of the training text: exact duplicates, near-duplicates, text unlike a trusted sample."""

from bkray.corpus.cleaning.exact import copies, text_hash
from bkray.corpus.cleaning.near import alike, linked, located, near_duplicates, rows_per_band, sketches
from bkray.corpus.cleaning.quality import Counts, QualityFilter, count, count_unigrams, likeness

__all__ = [
    "Counts",
    "QualityFilter",
    "alike",
    "copies",
    "count",
    "count_unigrams",
    "likeness",
    "linked",
    "located",
    "near_duplicates",
    "rows_per_band",
    "sketches",
    "text_hash",
]
