"""Corpora: sources, cleaning, tokenizer and packed windows, as Arrow tables."""

from bkray.corpus.cleaning import copies, text_hash
from bkray.corpus.packing import pack
from bkray.corpus.schema import DOCUMENTS, REJECTS, SPLITS, row_rng, stable_id, windows_schema
from bkray.corpus.shard import Shard
from bkray.corpus.sources import list_shards, read_shard
from bkray.corpus.tokenizer import (
    SEPARATOR_ID,
    encode_documents,
    load_tokenizer,
    token_bytes,
    train_tokenizer,
)

__all__ = [
    "DOCUMENTS",
    "REJECTS",
    "SEPARATOR_ID",
    "SPLITS",
    "Shard",
    "copies",
    "encode_documents",
    "list_shards",
    "load_tokenizer",
    "pack",
    "read_shard",
    "row_rng",
    "stable_id",
    "text_hash",
    "token_bytes",
    "train_tokenizer",
    "windows_schema",
]
