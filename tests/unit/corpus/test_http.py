"""Corpora that a web server sends, whole files or parts of them, and servers that fail."""

import gzip
import http.server
import json
import re
import threading
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bkray.config import UserError
from bkray.config.corpus import Cleaning, JsonlCorpus, ParquetCorpus, TextCorpus
from bkray.corpus import list_shards, read_shard

LINES = [f"line {number}" + " and more of it" * 500 for number in range(1000)]  # 7.5 MB


def parquet():
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": LINES}), sink)
    return sink.getvalue().to_pybytes()


FILES = {
    "/plain.txt": "\n".join(LINES).encode(),
    "/packed.jsonl.gz": gzip.compress("\n".join(json.dumps({"text": line}) for line in LINES).encode(), 1),
    "/table.parquet": parquet(),
}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        url = urlsplit(self.path)
        if url.path == "/forbidden.txt" and body:
            return self.send_error(403)
        data = FILES.get(url.path.replace("cut", "plain").replace("forbidden", "plain"))
        if data is None:
            return self.send_error(404)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and self.server.sends_parts:
            first = int(asked[1])
            part = data[first : int(asked[2]) + 1 if asked[2] else None]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        else:
            part = data
            self.send_response(200)
        if self.server.sends_parts:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if body:
            self.wfile.write(part[: len(part) // 2] if url.path == "/cut.txt" else part)

    def log_message(self, *_):
        pass


@pytest.fixture(params=["whole files", "parts"])
def server(request):
    """(URL, whether it sends parts of files)."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.sends_parts = request.param == "parts"
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", running.sends_parts
        running.shutdown()


def texts(corpus):
    tables = [
        kept for shard in list_shards(corpus) for kept, _ in read_shard(shard, corpus, Cleaning(), seed=0)
    ]
    return pa.concat_tables(tables)["text"].to_pylist()


def test_text_is_read_from_either_server(server):
    url, _ = server
    assert texts(TextCorpus(kind="text", path=f"{url}/plain.txt", document="line")) == LINES


def test_compression_is_that_of_the_path_whatever_is_asked_beside_it(server):
    url, _ = server
    corpus = JsonlCorpus(kind="jsonl", path=f"{url}/packed.jsonl.gz?token=a.b")
    assert texts(corpus) == LINES
    assert [shard.source for shard in list_shards(corpus)] == ["packed.jsonl.gz"]


def test_parquet_needs_a_server_that_sends_parts(server):
    url, sends_parts = server
    corpus = ParquetCorpus(kind="parquet", path=f"{url}/table.parquet")
    if sends_parts:
        assert texts(corpus) == LINES
    else:
        with pytest.raises(UserError, match=r"table\.parquet: cannot be read: .*; download it first"):
            texts(corpus)


@pytest.mark.parametrize("name", ["cut", "forbidden"])
def test_a_server_that_fails_midway_or_refuses_is_named(server, name):
    url, _ = server
    with pytest.raises(UserError, match=rf"{name}\.txt'?: cannot be re"):
        texts(TextCorpus(kind="text", path=f"{url}/{name}.txt", document="line"))
