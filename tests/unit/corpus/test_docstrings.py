"""Docstrings of packages: found without importing, filtered, split by file."""

import os
import sys

import pytest

from bkray.config import UserError
from bkray.config.corpus import Cleaning, DocstringsCorpus
from bkray.corpus import list_shards, read_shard, stable_id
from bkray.corpus.docstrings import docstrings
from bkray.corpus.shard import Fault

LONG = "Returns the number of things that were counted since the beginning of the world, as far as we know."


def read(corpus, seed=0):
    documents, rejects = [], []
    for shard in list_shards(corpus):
        for kept, rejected in read_shard(shard, corpus, Cleaning(), seed):
            documents += kept.to_pylist()
            rejects += rejected.to_pylist()
    return documents, rejects


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that raises when imported, and its corpus section."""
    monkeypatch.syspath_prepend(tmp_path)
    root = tmp_path / "bkray_sample"
    (root / "deep").mkdir(parents=True)
    (root / "__init__.py").write_text(f'"""{LONG}"""\nraise RuntimeError("imported")\n')
    for i in range(60):
        doc = "\n".join(f'def f{j}():\n    """{LONG} {i} {j}"""' for j in range(3))
        (root / "deep" / f"m{i:02}.py").write_text(doc)
    return root, DocstringsCorpus(kind="docstrings", packages=("bkray_sample",))


def test_a_file_with_a_name_that_is_not_utf8_is_named(package):
    root, corpus = package
    (root / os.fsdecode(b"\xff.py")).write_text(f'"""{LONG}"""')
    with pytest.raises(
        UserError, match=r"bkray_sample/\\udcff\.py is not UTF-8: rename it or leave 'bkray_s"
    ):
        list_shards(corpus)


def test_docstrings_of_every_block_in_order_and_nothing_else():
    code = '''
"""module"""
async def a():
    """a

        indented
    end
    """
    x = """no docstring"""
    class Inner:
        "inner"
        def method(self): """method"""
if x:
    def b(): """b"""
elif y:
    def c(): """c"""
else:
    def d(): """d"""
try:
    def e(): """e"""
except E:
    def f(): """f"""
else:
    def g(): """g"""
finally:
    def h(): """h"""
match x:
    case 1:
        def i(): """i"""
with x:
    for _ in x:
        def j(): """j"""
def k(): b"""bytes"""
def l(): f"""{x}"""
'''
    expected = ["module", "a\n\n    indented\nend", "inner", "method", *"bcdefghij"]
    assert docstrings(code.encode()) == expected


def test_source_that_does_not_parse_is_a_fault():
    assert isinstance(docstrings(b'def f(:\n    """doc"""'), Fault)
    assert isinstance(docstrings(b'"""doc"""\n\0'), Fault)
    assert docstrings(b"def f(:\n") == []


def test_a_file_whose_syntax_tree_would_fill_the_memory_is_not_parsed():
    numbers = b"numbers = [" + b"1," * (1 << 20) + b"]\n"
    assert docstrings(numbers) == []
    found = docstrings(b'"""doc"""\n' + numbers)
    assert found.reason == "too long"
    assert found.detail.startswith('2097175 bytes of Python, more than 2097152: """doc"""\nnumbers = [1,1,')


def test_package_is_read_without_being_imported(package):
    root, corpus = package
    (root / "broken.py").write_text('"""doc"""\ndef f(:')
    documents, rejects = read(corpus)
    assert "bkray_sample" not in sys.modules
    assert len(documents) == 1 + 60 * 3
    assert [(row["source"], row["reason"]) for row in rejects] == [("bkray_sample/broken.py", "not Python")]
    first = next(row for row in documents if row["source"] == "bkray_sample/deep/m07.py")
    assert first["text"] == f"{LONG} 7 0"
    assert first["doc_id"] == stable_id("bkray_sample/deep/m07.py", 0)


def test_shards_hold_fifty_files_and_their_size(package):
    root, corpus = package
    shards = list_shards(corpus)
    assert [len(shard.files) for shard in shards] == [50, 11]
    assert sum(shard.bytes for shard in shards) == sum(file.stat().st_size for file in root.rglob("*.py"))
    assert str(root) not in repr(shards)
    (root / "__init__.py").write_text('"""changed"""')
    assert list_shards(corpus)[0].fingerprint != shards[0].fingerprint


def test_docstrings_of_a_file_share_a_split(package):
    _, corpus = package
    corpus = corpus.model_copy(update={"validation": 0.3, "test": 0.2})
    documents, _ = read(corpus)
    by_file: dict[str, set[str]] = {}
    for row in documents:
        by_file.setdefault(row["source"], set()).add(row["split"])
    assert all(len(split) == 1 for split in by_file.values())
    assert set().union(*by_file.values()) == {"train", "validation", "test"}


def test_short_and_letterless_docstrings_are_left_out(package):
    root, corpus = package
    table = "| 1.0 | 2.0 | 3.0 |\n" * 10
    (root / "__init__.py").write_text(f'"""short"""\ndef f(): """{table}"""\ndef g(): """{LONG}"""')
    rows = [row for row in read(corpus)[0] if row["source"] == "bkray_sample/__init__.py"]
    assert [row["text"] for row in rows] == [LONG]
    assert rows[0]["doc_id"] == stable_id("bkray_sample/__init__.py", 2)


def test_packages_that_cannot_be_read(package):
    root, _ = package
    for name in ("no_such_package", "numpy.linalg", "../numpy"):
        with pytest.raises(UserError, match=f"no package '{name}' is installed"):
            list_shards(DocstringsCorpus(kind="docstrings", packages=("numpy", name)))
    with pytest.raises(UserError, match="'sys' has no Python files"):
        list_shards(DocstringsCorpus(kind="docstrings", packages=("sys",)))
    with pytest.raises(UserError, match="corpus is empty"):
        list_shards(DocstringsCorpus(kind="docstrings", packages=()))
    corpus = DocstringsCorpus(kind="docstrings", packages=("bkray_sample",))
    shards = list_shards(corpus)
    (root / "deep" / "m00.py").unlink()
    with pytest.raises(UserError, match=r"no file bkray_sample/deep/m00\.py here"):
        list(read_shard(shards[0], corpus, Cleaning(), 0))


def test_a_folder_that_cannot_be_listed_is_an_error(package, unlistable):
    unlistable("deep")
    with pytest.raises(UserError, match=r"deep cannot be read: Permission denied"):
        list_shards(DocstringsCorpus(kind="docstrings", packages=("bkray_sample",)))


def test_the_usual_packages_are_those_that_come_with_the_install():
    packages = DocstringsCorpus(kind="docstrings").packages
    assert set(packages) == {"torch", "sympy", "numpy", "pandas", "networkx", "ray", "nltk"}
    assert {shard.location for shard in list_shards(DocstringsCorpus(kind="docstrings"))} == set(packages)


def test_real_package():
    documents, _ = read(DocstringsCorpus(kind="docstrings", packages=("networkx",)))
    text = "\n".join(row["text"] for row in documents)
    assert len(text) > 1_000_000
    assert "shortest path" in text


def test_a_link_to_nothing_is_no_file(package):
    root, corpus = package
    before = read(corpus)
    (root / "deep" / ".#m00.py").symlink_to("someone@somewhere.1234")  # an editor's lock
    assert read(corpus) == before
