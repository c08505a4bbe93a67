"""The raw pool of a corpus: written, read again as a corpus, the same bytes each time."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bkray.config import UserError, load_recipe
from bkray.config.corpus import Cleaning, ParquetCorpus
from bkray.corpus import list_shards, read_shard
from bkray.corpus.contamination import KINDS
from bkray.runtime.contamination import make_pool

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.end_to_end


def contaminate(*arguments):
    command = [sys.executable, "-m", "pipelines.contaminate", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def documents(corpus, split):
    tables = [t for shard in list_shards(corpus) for t, _ in read_shard(shard, corpus, Cleaning(), 0)]
    return [row["text"] for row in pa.concat_tables(tables).to_pylist() if row["split"] == split]


def test_a_pool_of_a_corpus(small, tmp_path):
    other = tmp_path / "other.txt"
    lines = [f"a line of another kind, number {number}".encode() for number in range(90)]
    other.write_bytes(b"\n".join([*lines[:3], *[b"a \xff"] * 2, *lines[3:]]))
    section = f"{{kind: text, path: {other}, document: line}}"
    finished = contaminate(small, "--pool", tmp_path / "one", "--off-domain", section)
    assert finished.returncode == 0, finished.stderr
    recipe = load_recipe(small)
    make_pool(recipe, tmp_path / "two", [section], list(KINDS), 0.5)
    for split in ("train", "validation", "test"):
        files = [(tmp_path / name / f"{split}.parquet").read_bytes() for name in ("one", "two")]
        assert files[0] == files[1]
        rows = pq.read_table(tmp_path / "one" / f"{split}.parquet").to_pylist()
        clean = [row["text"] for row in rows if row["kind"] == "clean"]
        assert clean == documents(recipe.corpus, split)
        assert (len(rows) > len(clean)) == (split == "train")
        assert len(documents(ParquetCorpus(kind="parquet", path=str(tmp_path / "one")), split)) == len(rows)
        if split == "train":
            kinds = {"clean", "near_duplicate", "off_domain", "shuffled", "boilerplate"}
            assert {row["kind"] for row in rows} == kinds
            printed = dict(line.rsplit(maxsplit=1) for line in finished.stdout.splitlines())
            written = {kind: str([r["kind"] for r in rows].count(kind)) for kind in kinds}
            assert printed == {**written, "rejected": "0", "rejected off_domain": "2"}
    (first, second) = map(json.loads, (tmp_path / "one" / "rejects.jsonl").read_text().splitlines())
    assert (first["corpus"], first["source"], first["ordinal"]) == (f"--off-domain {section}", "other.txt", 3)
    assert second["detail"] == "invalid start byte at byte 2: a \\xff\n"


def test_what_is_rejected_is_counted_and_too_much_is_refused(small, tmp_path):
    good = [json.dumps({"text": f"a text of its own, number {number}"}) for number in range(95)]
    (tmp_path / "a.jsonl").write_text("\n".join([*good, *["{"] * 5]))
    corpus = f"corpus={{kind: jsonl, path: {tmp_path / 'a.jsonl'}}}"
    made = make_pool(load_recipe(small, [corpus]), tmp_path / "pool", [], ["shuffled"], 0.5)
    assert made["rejected"] == 5
    strict = load_recipe(small, [corpus, "cleaning.max_rejects=0.02"])
    with pytest.raises(
        UserError, match=r"5 of 100 documents were rejected, more than .* 0.02; the first .*: mend the rows"
    ):
        make_pool(strict, tmp_path / "strict", [], ["shuffled"], 0.5)
    assert not list(tmp_path.glob("*strict*"))


def test_too_many_rejects_of_what_was_read_of_another_domain_are_refused(small, tmp_path):
    (tmp_path / "other.jsonl").write_text("\n".join([*['{"text": "another one"}'] * 900, *["{"] * 200]))
    section = f"{{kind: jsonl, path: {tmp_path / 'other.jsonl'}}}"
    with pytest.raises(
        UserError, match=r"--off-domain .*other.jsonl\}: 100 of 1,000 documents were rejected"
    ):
        make_pool(
            load_recipe(small, ["cleaning.max_rejects=0.05"]), tmp_path / "pool", [section], list(KINDS), 0.5
        )
    assert not (tmp_path / "pool").exists()


@pytest.mark.parametrize(
    ("others", "kinds", "share", "message"),
    [
        (
            ["{kind: text, path: one.txt}"],
            ["off_domain"],
            0.5,
            "ends before the corpus: bring more by --off-domain",
        ),
        ([], ["shuffled"], 0.9, "--share 0.9 is too much: at most 0.5 with 1 kinds"),
        (["{kind: txt}"], ["off_domain"], 0.5, r"--off-domain \{kind: txt\}.*did you mean text\?"),
    ],
)
def test_what_the_user_can_mend(small, tmp_path, monkeypatch, others, kinds, share, message):
    monkeypatch.chdir(tmp_path)
    Path("one.txt").write_text("only one")
    recipe = load_recipe(small)
    with pytest.raises(UserError, match=f"(?s){message}"):
        make_pool(recipe, tmp_path / "new", others, kinds, share)
    assert not list(tmp_path.glob("*new*")), "something is half-written"
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there is already there"):
        make_pool(recipe, tmp_path / "there", [], ["shuffled"], 0.5)
