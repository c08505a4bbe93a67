"""Files: what is found; of text and JSON Lines, what is read and what is rejected."""

import gzip
import json
import os
import pickle
import tracemalloc
from pathlib import Path

import fsspec
import pytest
import zstandard

from bkray.config import UserError
from bkray.config.corpus import Cleaning, JsonlCorpus, ParquetCorpus, TextCorpus
from bkray.corpus import DOCUMENTS, REJECTS, list_shards, read_shard, sources, stable_id
from bkray.corpus.lines import opens_at

WIKITEXT = Path(__file__).parents[4] / "shared" / "data" / "wikitext-2"


def read(corpus, max_chars=1_000_000, seed=0):
    """All documents and rejects of a corpus as rows."""
    documents, rejects = [], []
    for shard in pickle.loads(pickle.dumps(list_shards(corpus))):
        for kept, rejected in read_shard(shard, corpus, Cleaning(max_chars=max_chars), seed):
            assert kept.schema == DOCUMENTS
            assert rejected.schema == REJECTS
            documents += kept.to_pylist()
            rejects += rejected.to_pylist()
    return documents, rejects


def text(path, **options):
    return TextCorpus(kind="text", path=str(path), **options)


def jsonl(path, **options):
    return JsonlCorpus(kind="jsonl", path=str(path), **options)


def texts(corpus, **options):
    return [row["text"] for row in read(corpus, **options)[0]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"document": "file"}, ["= A =\none\n\n \ntwo  \nthree\n= B =\n\nfour"]),
        ({"document": "line"}, ["= A =", "one", "two", "three", "= B =", "four"]),
        ({"document": "paragraph"}, ["= A =\none", "two  \nthree\n= B =", "four"]),
        ({"document_start": r"^= \w =$"}, ["= A =\none\n\n \ntwo  \nthree", "= B =\n\nfour"]),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_documents_of_a_text_file(tmp_path, options, expected, newline):
    content = "\n= A =\none\n\n \ntwo  \nthree\n= B =\n\nfour \n".replace("\n", newline)
    (tmp_path / "a.txt").write_bytes(content.encode())
    found = [t.replace("\r\n", "\n").lstrip("\n") for t in texts(text(tmp_path / "a.txt", **options))]
    assert found == expected


def test_ids_depend_on_source_and_ordinal_not_on_the_folder(tmp_path):
    for folder in ("here", "there/deep"):
        (tmp_path / folder / "sub").mkdir(parents=True)
        (tmp_path / folder / "sub" / "a.txt").write_text("one\n\ntwo\n")
    here, there = (read(text(tmp_path / folder))[0] for folder in ("here", "there/deep"))
    assert here == there
    assert [row["doc_id"] for row in here] == [stable_id("sub/a.txt", 0), stable_id("sub/a.txt", 1)]
    assert {row["source"] for row in here} == {"sub/a.txt"}
    assert all(row["parent_id"] is None and row["augmentation"] is None for row in here)


def test_same_name_in_two_paths_keeps_documents_apart(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text(folder)
    corpus = TextCorpus(
        kind="text", path=(str(tmp_path / "a"), str(tmp_path / "b/x.txt"), str(tmp_path / "b"))
    )
    rows = read(corpus)[0]
    assert [row["text"] for row in rows] == ["b", "a"]
    assert len({row["doc_id"] for row in rows}) == 2


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_compressed_files_read_alike_and_a_cut_one_is_named(tmp_path, compress):
    name = "a.txt.gz" if compress is gzip.compress else "a.txt.zst"
    lines = [f"línea {i} {i * i}" for i in range(20_000)]
    packed = compress("\n".join(lines).encode())
    (tmp_path / name).write_bytes(packed)
    assert texts(text(tmp_path, document="line")) == lines
    (tmp_path / name).write_bytes(packed + packed)  # a file may hold several streams
    assert len(texts(text(tmp_path, document="line"))) == 2 * len(lines) - 1
    for end in (len(packed) // 2, -3):
        (tmp_path / name).write_bytes(packed[:end])
        with pytest.raises(UserError, match=rf"{name}: the compressed stream ends early"):
            read(text(tmp_path, document="line"))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_that_was_cut_to_nothing_is_named(tmp_path, suffix):
    (tmp_path / "a.txt").write_text("words\n")
    (tmp_path / f"b.txt{suffix}").write_bytes(b"")
    with pytest.raises(UserError, match=rf"b\.txt\{suffix}: the compressed file has 0 bytes"):
        read(text(tmp_path))


def test_only_the_beginning_of_a_line_makes_it_a_title():
    opens = opens_at("b", "a.txt")
    assert opens(b"ab\n")
    assert not opens(b"a" * 1000 + b"b\n")


def test_a_line_for_which_the_pattern_takes_for_ever_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("# aa\n# " + "ab" * 40 + "!\n")
    with pytest.raises(UserError) as error:
        read(text(tmp_path, document_start=r"^# ([a-f]+)+$"))
    said = "a.txt: document_start '^# ([a-f]+)+$' takes more than 2 s for the line that begins with '# abab"
    assert said in str(error.value)
    assert "write it without a repetition within a repetition" in str(error.value)


def test_file_that_is_not_compressed_is_a_user_error(tmp_path):
    (tmp_path / "a.jsonl.gz").write_text('{"text": "plain"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl\.gz: cannot be read"):
        read(jsonl(tmp_path))


def test_bad_utf8_rejects_only_its_document(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfgood\nbad \xff line\n\xc3\xbc\n")
    documents, rejects = read(text(tmp_path, document="line"))
    assert [row["text"] for row in documents] == ["good", "ü"]
    (reject,) = rejects
    assert (reject["source"], reject["ordinal"], reject["reason"]) == ("a.txt", 1, "not UTF-8")
    assert "byte 4" in reject["detail"]
    assert r"bad \xff line" in reject["detail"]


@pytest.mark.parametrize("length", [101, 399, 401, 5_000_000])
def test_over_long_documents_go_to_the_rejects_with_length_and_beginning(tmp_path, length):
    long = "é" * length
    (tmp_path / "a.txt").write_text(f"before\n{long}\nafter\n{'é' * 100}\n", encoding="utf-8")
    documents, (reject,) = read(text(tmp_path, document="line"), max_chars=100)
    assert [row["text"] for row in documents] == ["before", "after", "é" * 100]
    assert reject["reason"] == "too long"
    shown, head = reject["detail"].split(" characters: ")
    assert int(shown) in (length, length + 1)  # the line's end counts where the line is not held
    assert head == "é" * 80


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("a.txt", b"first\n\n", b"\n\nlast"),
        ("a.jsonl", b'{"text": "first"}\n{"text": "', b'"}\n{"text": "last"}'),
        ("a.jsonl.gz", b'{"text": "first"}\n{"text": "', b'"}\n{"text": "last"}'),
    ],
)
def test_a_line_of_100_mb_is_never_held(tmp_path, name, before, after):
    open_file = gzip.open if name.endswith(".gz") else open
    with open_file(tmp_path / name, "wb", **({"compresslevel": 1} if name.endswith(".gz") else {})) as file:
        file.write(before)
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(after)
    corpus = text(tmp_path) if name.endswith(".txt") else jsonl(tmp_path)
    tracemalloc.start()
    try:
        documents, (reject,) = read(corpus)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [row["text"] for row in documents] == ["first", "last"]
    assert reject["reason"] == "too long"
    assert peak < 40e6


def test_over_long_json_row(tmp_path):
    rows = [
        {"text": "x" * 3_000_000},
        {"text": "\\u00e9" * 10},
        {"text": "y" * 101},
        {"text": "ok", "n": "z" * 9999},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents, rejects = read(jsonl(tmp_path), max_chars=100)
    assert [row["text"] for row in documents] == ["\\u00e9" * 10, "ok"]
    assert [(row["ordinal"], row["reason"]) for row in rejects] == [(0, "too long"), (2, "too long")]


def test_jsonl_rows_that_cannot_be_used(tmp_path):
    lines = [
        b'{"text": "a"}',
        b'{"text": ',
        b"[1]",
        b'{"other": "b"}',
        b'{"text": 3}',
        b'{"text": null}',
        b"",
    ]
    lines += [
        b'{"text": "\\ud800"}',
        b'{"text": "\xff"}',
        b'{"text": "  "}',
        b'{"text": "z "}',
        b"[" * 100_000,
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    documents, rejects = read(jsonl(tmp_path / "a.jsonl"))
    assert [row["text"] for row in documents] == ["a", "z"]
    assert [(row["ordinal"], row["reason"]) for row in rejects] == [
        (1, "malformed JSON"),
        (2, "malformed JSON"),
        (3, "no text field"),
        (4, "text is not a string"),
        (5, "text is not a string"),
        (7, "not Unicode"),
        (8, "not UTF-8"),
        (11, "malformed JSON"),
    ]


def test_an_integer_of_any_length_beside_the_text_is_read_over(tmp_path):
    digits = "9" * 5000
    rows = [f'{{"n": {digits}, "text": "good"}}', f'{{"text": {digits}}}', f'{{"n": {digits}, "text": ']
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    documents, rejects = read(jsonl(tmp_path))
    assert [row["text"] for row in documents] == ["good"]
    assert [row["reason"] for row in rejects] == ["text is not a string", "malformed JSON"]


@pytest.mark.parametrize("indent", [None, 2])
def test_a_file_that_is_one_json_array_says_how_to_write_it(tmp_path, indent):
    (tmp_path / "a.json").write_text(json.dumps([{"text": "one"}, {"text": "two"}], indent=indent))
    documents, rejects = read(jsonl(tmp_path))
    assert not documents
    assert rejects[0]["reason"] == "malformed JSON"
    assert rejects[0]["detail"].endswith("; write one object a line")


def test_half_a_surrogate_pair_in_what_a_rejected_row_shows(tmp_path):
    lines = [r'{"text": "' + r"\ud800" * 200 + '"}', r'{"\ud800": "a key"}', '{"text": "good"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    documents, (long, other) = read(jsonl(tmp_path), max_chars=100)
    assert [row["text"] for row in documents] == ["good"]
    assert (long["reason"], long["detail"]) == ("too long", "200 characters: " + r"\ud800" * 80)
    assert (other["reason"], other["detail"]) == ("no text field", r"no 'text' among \ud800")
    (tmp_path / "a.jsonl").write_text(lines[1])
    with pytest.raises(UserError, match=r"there are \\ud800"):
        read(jsonl(tmp_path))


def test_field_that_no_row_has_is_a_user_error_with_the_nearest(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"content": "a", "id": 1}\n{"content": "b", "url": ""}\n')
    said = r"no text_field 'contents'; there are content, id, url; did you mean text_field: content\?"
    with pytest.raises(UserError, match=said):
        read(jsonl(tmp_path, text_field="contents"))


def test_a_file_with_a_name_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / os.fsdecode(b"\xffb.txt")).write_text("words")
    with pytest.raises(UserError, match=r"the file \\udcffb\.txt is not UTF-8: rename it"):
        list_shards(text(tmp_path))


def test_paths_that_lead_nowhere(tmp_path):
    (tmp_path / "novels.txt").write_text("x")
    (tmp_path / "image.png").write_text("x")
    (tmp_path / "void").mkdir()
    (tmp_path / "void" / "a.txt").write_text("")
    cases = {
        "novel.txt": r"no such file or folder; did you mean .*/novels\.txt\?",
        "no/such.txt": "nor is there a folder",
        "*.jsonl": r"no file with a name in \.txt, \.md",
        "void": "the corpus is empty",
    }
    for path, message in cases.items():
        with pytest.raises(UserError, match=message):
            list_shards(text(tmp_path / path))
    with pytest.raises(UserError, match=r"no file with a name in \.parquet"):
        list_shards(ParquetCorpus(kind="parquet", path=str(tmp_path)))
    with pytest.raises(UserError, match="Protocol not known: foo"):
        list_shards(text("foo://bucket/a.txt"))


def test_file_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "good.txt").write_text("x")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"gone\.txt cannot be read: No such file"):
        list_shards(text(tmp_path))


def test_a_folder_below_that_cannot_be_listed_is_an_error(tmp_path, unlistable):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "closed").mkdir()
    unlistable("closed")
    with pytest.raises(UserError, match=r"cannot be reached: PermissionError: .*closed"):
        list_shards(TextCorpus(kind="text", path=str(tmp_path)))


def test_named_file_may_have_any_name_and_hidden_ones_are_left_out(tmp_path):
    (tmp_path / "notes.log").write_text("named")
    (tmp_path / ".draft.txt").write_text("hidden")
    (tmp_path / "b.md").write_text("kept")
    assert texts(text(tmp_path / "notes.log")) == ["named"]
    assert texts(text(tmp_path)) == ["kept"]
    assert texts(text(tmp_path / "[b]*.md")) == ["kept"]


@pytest.mark.parametrize("pattern", ["", "**/*.txt", "**"])
def test_links_to_folders_are_followed_and_each_folder_is_read_once(tmp_path, pattern):
    (tmp_path / "c" / "own").mkdir(parents=True)
    (tmp_path / "other" / "deep").mkdir(parents=True)
    for place in ("c/a.txt", "c/own/b.txt", "other/z.txt", "other/deep/y.txt"):
        (tmp_path / place).write_text(place)
    for link, target in {"more": "../other", "again": "own", "own/loop": "..", ".hidden": "../other"}.items():
        (tmp_path / "c" / link).symlink_to(target)
    (tmp_path / "other" / "back").symlink_to("../other")
    shards = list_shards(text(tmp_path / "c" / pattern))
    assert [shard.source for shard in shards] == ["a.txt", "more/deep/y.txt", "more/z.txt", "own/b.txt"]


def test_a_glob_without_a_double_star_names_what_links_lead_to(tmp_path):
    (tmp_path / "c" / "own" / "deep").mkdir(parents=True)
    (tmp_path / "c" / "own" / "deep" / "a.txt").write_text("words")
    (tmp_path / "c" / "link").symlink_to("own/deep")
    assert [shard.source for shard in list_shards(text(tmp_path / "c" / "*" / "*.txt"))] == ["link/a.txt"]
    with pytest.raises(UserError, match=r"'\*\*' can only be an entire path component"):
        list_shards(text(tmp_path / "c" / "**.txt"))


def test_packed_files_of_another_kind_beside_good_ones_are_named_once(tmp_path, caplog):
    for name in ("a.txt", "b.txt.gz", "d.txt.bz2", "c.txt.bz2", "notes.pdf", ".hidden.txt.bz2"):
        (tmp_path / name).write_bytes(b"words")
    for _ in range(2):
        assert [shard.source for shard in list_shards(text(tmp_path))] == ["a.txt", "b.txt.gz"]
    (message,) = caplog.messages
    assert "2 files, such as c.txt.bz2, are left out, as their names do not end in .txt, .md" in message


def test_any_fsspec_url(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe("/bkray-corpus/sub/a.jsonl.gz", gzip.compress(b'{"text": "remote"}\n'))
    (shard,) = list_shards(jsonl("memory://bkray-corpus"))
    assert (shard.source, shard.location) == ("sub/a.jsonl.gz", "memory:///bkray-corpus/sub/a.jsonl.gz")
    assert texts(jsonl("memory://bkray-corpus/*/*.gz")) == ["remote"]
    (tmp_path / "a.txt").write_text("local")
    assert texts(text(f"file://{tmp_path}/a.txt")) == ["local"]


def test_fingerprint_follows_the_content(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one")
    (before,) = list_shards(text(file))
    assert list_shards(text(file)) == [before]
    file.write_text("two!")
    (after,) = list_shards(text(file))
    assert before.fingerprint != after.fingerprint
    assert (before.bytes, after.bytes) == (3, 4)


def splits(corpus, **options):
    found: dict[str, set[str]] = {}
    for row in read(corpus, **options)[0]:
        found.setdefault(row["source"], set()).add(row["split"])
    return found


def test_what_is_compressed_counts_threefold_as_text(tmp_path):
    (tmp_path / "a.txt").write_text("plain\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"packed\n"))
    stored = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    shards = {shard.source: shard.text_bytes for shard in list_shards(text(tmp_path))}
    assert shards == {"a.txt": stored["a.txt"], "b.txt.gz": 3 * stored["b.txt.gz"]}


def test_splits_by_file_name(tmp_path):
    for name in ("train-00.txt", "Valid.txt", "test_1.txt", "training.md", "extra.txt", "testament.txt"):
        (tmp_path / name).write_text("\n".join(map(str, range(300))))
    assert splits(text(tmp_path, document="line")) == {
        "train-00.txt": {"train"},
        "training.md": {"train"},
        "extra.txt": {"train"},
        "testament.txt": {"train"},
        "Valid.txt": {"validation"},
        "test_1.txt": {"test"},
    }
    (tmp_path / "Valid.txt").unlink()
    carved = splits(text(tmp_path, document="line"))
    assert carved["test_1.txt"] == {"test"}
    assert carved["train-00.txt"] == {"train", "validation"}


def test_a_url_that_cannot_be_reached_is_named():
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/none.txt'?: cannot be reached"):
        list_shards(TextCorpus(kind="text", path="http://127.0.0.1:9/none.txt"))


def test_a_share_of_a_split_that_the_corpus_brings_is_refused(tmp_path):
    for name in ("train.txt", "valid.txt"):
        (tmp_path / name).write_text("\n".join(map(str, range(300))))
    with pytest.raises(UserError, match=r"corpus.validation 0.2 has no effect: the corpus brings"):
        list_shards(text(tmp_path, validation=0.2))
    assert splits(text(tmp_path, document="line", test=0.2))["train.txt"] == {"train", "test"}


def test_splits_by_hash_keep_the_shares_and_follow_the_seed(tmp_path):
    (tmp_path / "test.txt").write_text(
        "\n".join(map(str, range(4000)))
    )  # no train beside it: no split's name
    corpus = text(tmp_path, document="line", validation=0.1, test=0.2)
    rows = read(corpus)[0]
    shares = {s: sum(row["split"] == s for row in rows) / len(rows) for s in ("train", "validation", "test")}
    assert shares == pytest.approx({"train": 0.7, "validation": 0.1, "test": 0.2}, abs=0.02)
    assert rows == read(corpus)[0]
    assert [row["split"] for row in rows] != [row["split"] for row in read(corpus, seed=1)[0]]


def test_batches_are_bounded_and_never_none(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("\n".join("word " * 5 for _ in range(2500)))
    corpus = text(tmp_path, document="line")
    (shard,) = list_shards(corpus)
    sizes = [kept.num_rows for kept, _ in read_shard(shard, corpus, Cleaning(), 0)]
    assert sizes == [1000, 1000, 500]
    monkeypatch.setattr(sources, "BATCH_CHARS", 240)
    assert max(kept.num_rows for kept, _ in read_shard(shard, corpus, Cleaning(), 0)) == 10
    (tmp_path / "a.txt").write_text("\n \n")
    ((kept, rejected),) = read_shard(shard, corpus, Cleaning(), 0)
    assert kept.num_rows == rejected.num_rows == 0


def test_wikitext_articles():
    if not WIKITEXT.is_dir():
        pytest.skip(f"WikiText-2 is not in {WIKITEXT}")
    corpus = text(WIKITEXT, document_start="^ = [^=].* = $")
    rows, rejects = read(corpus)
    count = {split: sum(row["split"] == split for row in rows) for split in ("train", "validation", "test")}
    assert count == {"train": 629, "validation": 60, "test": 62}
    assert not rejects
    assert splits(corpus) == {
        "train.txt.gz": {"train"},
        "valid.txt.gz": {"validation"},
        "test.txt.gz": {"test"},
    }
    assert all(row["text"].startswith(" = ") for row in rows)
    lines = [line.rstrip() for row in rows for line in row["text"].split("\n") if line.strip()]
    raw = b"".join(gzip.decompress(file.read_bytes()) for file in sorted(WIKITEXT.glob("*.gz"))).decode()
    assert lines == [line.rstrip() for line in raw.split("\n") if line.strip()]
