"""The exact duplicates of the IMDB training reviews (96, as its README says), where the data is there."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest

from bkray.config.corpus import Cleaning, JsonlCorpus
from bkray.corpus import copies, list_shards, read_shard, text_hash

IMDB = Path(__file__).parents[5] / "shared" / "data" / "imdb-train.jsonl.gz"


@pytest.mark.skipif(not IMDB.exists(), reason=f"{IMDB} is missing")
def test_all_96_exact_duplicates_go():
    corpus = JsonlCorpus(kind="jsonl", path=str(IMDB))
    (shard,) = list_shards(corpus)
    read = pa.concat_tables(table for table, _ in read_shard(shard, corpus, Cleaning(), 0))
    with gzip.open(IMDB, "rt", encoding="utf-8") as file:
        distinct = {json.loads(line)["text"].rstrip() for line in file}
    hashes = pa.array([text_hash(text) for text in read["text"].to_pylist()])
    goes = copies(read.append_column("text_hash", hashes))
    kept = read.filter(pa.array(~goes))
    assert (read.num_rows, goes.sum()) == (25_000, 96)
    assert len(kept) == len(distinct)
    assert set(kept["text"].to_pylist()) == distinct
