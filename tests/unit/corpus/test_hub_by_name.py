"""Data sets by name, from a server of this machine that answers as the Hugging Face hub does."""

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

RECIPES = Path(__file__).parents[3] / "pipelines" / "recipes"
COMMIT = "0" * 39 + "1"
ASKED = []
CODE = """
import json, sys
from bkray.config import parse_recipe
from bkray.config.corpus import Cleaning
from bkray.corpus import list_shards, read_shard

found = []
for asked in json.loads(sys.argv[1]):
    corpus = parse_recipe({"name": "it", "corpus": asked}).corpus
    tables = [table for shard in list_shards(corpus) for table in read_shard(shard, corpus, Cleaning(), 0)]
    found.append([[row for each in tables for row in each[n].to_pylist()] for n in (0, 1)])
print(json.dumps(found))
"""


def parquet(texts):
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), file)
    return file.getvalue()


def lines(*texts):
    return gzip.compress("".join(json.dumps({"text": text, "url": "u"}) + "\n" for text in texts).encode())


def configurations(*names):
    """The head of a data set's card, as that of C4 has it: a folder each, its files in several parts."""
    of_splits = [
        {
            "config_name": name,
            "data_files": [
                {"split": split, "path": f"{name}/c4-{split}.*.json.gz"} for split in ("train", "validation")
            ],
        }
        for name in names
    ]
    return f"---\n{yaml.safe_dump({'configs': of_splits})}---\n".encode()


DATA_SETS = {
    "allenai/c4": {
        "README.md": configurations("en", "realnewslike", "de"),
        "en/c4-train.00000-of-00002.json.gz": lines("page 1", "page 2"),
        "en/c4-train.00001-of-00002.json.gz": lines("page 3", "page 4"),
        "en/c4-validation.00000-of-00001.json.gz": lines("held page 1", "held page 2"),
        "realnewslike/c4-train.00000-of-00001.json.gz": lines("news 1", "news 2"),
        "realnewslike/c4-validation.00000-of-00001.json.gz": lines("held news 1", "held news 2"),
        "de/c4-train.00000-of-00001.json.gz": lines("Seite 1"),
    },
    "org/lines": {"train.jsonl.gz": gzip.compress(b'{"text": "a"}\n{broken\n{"text": "c"}\n')},
    "org/table": {"train.parquet": parquet(["a", None, "c"]), "test.parquet": parquet(["t"])},
}


class Hub(BaseHTTPRequestHandler):
    """What `datasets` asks of a hub: a data set's commit, the files of a commit, and their content."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.split("?")[0].strip("/")
        ASKED.append(path)
        for name, files in DATA_SETS.items():
            if path.startswith(f"api/datasets/{name}/tree/{COMMIT}"):
                folder = path.removeprefix(f"api/datasets/{name}/tree/{COMMIT}").strip("/")
                return self.answer(json.dumps(listed(files, folder)).encode())
            if path in (f"api/datasets/{name}", f"api/datasets/{name}/revision/{COMMIT}"):
                return self.answer(json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode())
            file = path.removeprefix(f"datasets/{name}/resolve/{COMMIT}/")
            if file in files:
                return self.content(files[file])
        return self.answer(b"{}", 404, {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def content(self, content):
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        wanted = self.headers.get("Range")
        if not wanted:
            return self.answer(content, 200, headers)
        first, last = (int(at) for at in wanted.removeprefix("bytes=").split("-"))
        headers["Content-Range"] = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
        return self.answer(content[first : last + 1], 206, headers)

    def answer(self, content, code=200, headers=()):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


def listed(files, folder):
    """Files and folders that lie in `folder`, as the hub lists them."""
    within = [name for name in files if name.startswith(f"{folder}/" if folder else "")]
    depth = len(folder.split("/")) if folder else 0
    parts = {tuple(name.split("/")[: depth + 1]) for name in within}
    names = ["/".join(each) for each in sorted(parts)]
    folders = [{"type": "directory", "path": name, "oid": "0" * 40} for name in names if name not in files]
    return folders + [entry(name, files) for name in names if name in files]


def entry(name, files):
    oid = hashlib.sha1(files[name]).hexdigest()
    return {"type": "file", "path": name, "size": len(files[name]), "oid": oid}


@pytest.fixture
def read(tmp_path):
    """Documents and rejects of each corpus, and what the hub was asked."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "0",
    }

    def call(*corpora):
        ASKED.clear()
        command = [sys.executable, "-c", CODE, json.dumps(corpora)]
        run = subprocess.run(
            command, env=os.environ | settings, stdout=subprocess.PIPE, text=True, check=True, timeout=120
        )
        return json.loads(run.stdout.splitlines()[-1]), list(ASKED)

    yield call
    server.shutdown()
    server.server_close()


def rows_of(name, *rows):
    return [{"kind": "hub", "name": name, "rows": each} for each in rows]


def shown(tables):
    documents, rejects = tables
    return [row["text"] for row in documents], [(row["ordinal"], row["reason"]) for row in rejects]


def test_lines_are_downloaded_once_or_streamed(read):
    found, asked = read(*rows_of("org/lines", None, None, 3, 1))
    malformed = (1, "malformed JSON")
    assert list(map(shown, found)) == [*[(["a", "c"], [malformed])] * 3, (["a"], [])]
    downloads = [path for path in asked if path.endswith("resolve/" + COMMIT + "/train.jsonl.gz")]
    assert len(downloads) >= 2, "the streams ask for it too"
    _, asked = read(*rows_of("org/lines", None))
    assert not [path for path in asked if path in downloads], "what was downloaded is downloaded again"


def test_tables_are_downloaded_or_streamed_with_their_splits(read):
    (whole, streamed), _ = read(*rows_of("org/table", None, 3))
    assert shown(whole) == shown(streamed) == (["t", "a", "c"], [(1, "text is not a string")])
    assert [row["split"] for row in whole[0]] == [row["split"] for row in streamed[0]]
    assert {(row["source"], row["split"]) for row in whole[0]} >= {("org/table/test", "test")}


def test_of_the_splits_that_are_named_so_many_rows_and_no_others(read):
    (some,), asked = read(*rows_of("org/table", {"train": 1}))
    assert [(row["source"], row["text"]) for row in some[0]] == [("org/table/train", "a")]
    assert not [path for path in asked if path.endswith("test.parquet")], "nothing of it is asked for"


def test_the_pool_of_the_shipped_transfer_is_a_stream_of_two_configurations(read):
    """`pool.yaml` as it stands but for the number of rows; the server has C4's names, folders and card."""
    corpus = yaml.safe_load((RECIPES / "pool.yaml").read_text())["corpus"]
    for source in corpus["sources"]:
        source["rows"] = {split: 3 if split == "train" else 1 for split in source["rows"]}
    (pool,), asked = read(corpus)
    assert sorted((row["source"], row["text"]) for row in pool[0]) == [
        *(("0/allenai/c4/en/train", f"page {number}") for number in (1, 2, 3)),
        ("0/allenai/c4/en/validation", "held page 1"),
        *(("1/allenai/c4/realnewslike/train", f"news {number}") for number in (1, 2)),
        ("1/allenai/c4/realnewslike/validation", "held news 1"),
    ]
    assert {row["split"] for row in pool[0] if row["text"].startswith("held")} == {"validation"}
    assert not [path for path in asked if "/de/" in path], "nothing of another language is asked for"
