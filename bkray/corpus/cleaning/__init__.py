"""What is kept out of the training text: exact duplicates, near-duplicates, text unlike a trusted sample."""

from bkray.corpus.cleaning.exact import first_of_duplicates, text_hash
from bkray.corpus.cleaning.near import alike, linked, located, near_duplicates, rows_per_band, sketches
from bkray.corpus.cleaning.quality import Counts, QualityFilter, count, count_unigrams, likeness

__all__ = [
    "Counts",
    "QualityFilter",
    "alike",
    "count",
    "count_unigrams",
    "first_of_duplicates",
    "likeness",
    "linked",
    "located",
    "near_duplicates",
    "rows_per_band",
    "sketches",
    "text_hash",
]
