"""Apertium: its stream format, real translations where it is installed, and programs that hang or die."""

import random
import subprocess
import time

import pytest

from bkray.augmentation import apertium
from bkray.augmentation.apertium import Apertium, from_stream, to_stream
from bkray.config import UserError

try:
    Apertium().check()
    HERE = True
except UserError:
    HERE = False
needs_apertium = pytest.mark.skipif(not HERE, reason="Apertium's eng-spa is not here: apertium-eng-spa")

TEXT = """Returns the `k`-th value of [arrays], see networkx.path_graph(4) and $x^2$.

    >>> G = nx.path_graph(4)  # houses [of] words

The children  bought large houses, and @-@ the <unk> said "hello" in 1999 \\ {now}."""


def round_trip(text):
    code = []
    stream = to_stream(text, code)
    return from_stream(stream.removesuffix("[end]"), code)


def test_the_stream_format_keeps_every_character():
    rng = random.Random(0)
    texts = ["".join(rng.choices("ab.Z[]{}^$/\\@<>*~ \n\t>_1é\u00a0", k=60)) for _ in range(300)]
    for text in [TEXT, ">>> a = [1]\n>>> b", " = Title = \n \n Text , \n", *texts]:
        assert round_trip(text) == text


def test_code_and_layout_are_out_of_reach_and_words_are_not():
    code = []
    stream = to_stream(TEXT, code)
    assert code == ["k`-th", "networkx.path_graph(4", "$x^2$", "<unk>"]
    prompt = r"[\>\>\> G = nx.path_graph(4)  # houses \[of\] words]"
    assert prompt in stream, "as layout"
    words = stream.replace(prompt, "")
    assert "path_graph" not in words
    for seen in ("Returns the ", "The children[  ]bought large houses,", "1999"):
        assert seen in words


def test_a_million_marks_take_no_time():
    word = "a" + "!" * 1_000_000 + "a"
    assert round_trip(f"see {word} there") == f"see {word} there"


def test_what_rules_leave_behind_is_tidied():
    assert from_stream("it  works[\n] well [  ]here .[][\n\n] Now.[]", []) == "it works\nwell  here\n\nNow"
    assert from_stream("Xqzbzqx and xqzczqx", ["a.b", "c_d"]) == "c_d and xqzczqx"


@needs_apertium
def test_a_real_round_trip_keeps_layout_and_code_and_leaves_no_marks():
    spanish = Apertium().forth([TEXT])[0]
    assert "casas" in spanish
    assert "*" not in spanish
    english = Apertium().back([spanish])[0]
    assert english != TEXT
    assert english.split() != TEXT.split()
    for kept in (
        "networkx.path_graph(4)",
        "\n\n    >>> G = nx.path_graph(4)  # houses [of] words\n\n",
        "$x^2$",
    ):
        assert kept in spanish
        assert kept in english
    for kept in ("houses", "@-@", "<unk>", "1999", '"hello"', "\\ {"):
        assert kept in english


@needs_apertium
def test_a_translation_depends_on_its_document_alone(monkeypatch):
    """With one tagger for all, what is tagged after a new ambiguity would come out otherwise."""
    ambiguous = "the received songs held like the light state trips and met leaves left rose and felt saw"
    words = ambiguous.split()
    rng = random.Random(0)
    texts = [" ".join(rng.choices([*words, "<unk>", ".", "of"], k=60)) for _ in range(6)]
    together = Apertium().forth(texts)
    assert Apertium().forth(texts[::-1])[::-1] == together
    monkeypatch.setattr(apertium, "CALL_CHARS", 1)
    assert Apertium().forth(texts[4:]) == together[4:]


@pytest.fixture
def modes(tmp_path, monkeypatch):
    """Writes a mode of programs that are given as shell scripts."""
    (tmp_path / "modes").mkdir()
    monkeypatch.setenv("APERTIUM_DATADIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def write(name, **programs):
        for program, script in programs.items():
            (tmp_path / program).write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / program).chmod(0o755)
        (tmp_path / "modes" / f"{name}.mode").write_text(" | ".join(f"{p} $1 'data file'" for p in programs))

    return write


def test_programs_get_the_options_of_their_mode(modes, tmp_path):
    modes("a-b", one=f'echo "$@" > {tmp_path}/one.txt; cat', two=f'echo "$@" > {tmp_path}/two.txt; cat')
    assert Apertium("a-b", "a-b").forth(["some words", ""]) == ["some words", ""]
    assert (tmp_path / "one.txt").read_text() == (tmp_path / "two.txt").read_text() == "-z -n data file\n"


def test_a_program_that_hangs_is_ended_with_all_the_others(modes, tmp_path):
    modes("a-b", one="cat", two=f"sleep 98765 & echo $! > {tmp_path}/id; wait")
    start = time.monotonic()
    with pytest.raises(UserError, match=r"Apertium's a-b did not finish 5 characters in 1 s.*fewer --cpus"):
        Apertium("a-b", "a-b", timeout_s=1.0).forth(["words"])
    assert time.monotonic() - start < 60
    process = (tmp_path / "id").read_text().strip()
    state = subprocess.run(["ps", "-o", "stat=", "-p", process], capture_output=True, text=True, check=False)
    assert state.stdout.strip()[:1] in ("", "Z"), "no process is left behind"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo no memory >&2; exit 3", r"has ended before its time \(data file: code 3, no memory\)"),
        ("kill -9 $$", "has ended before its time"),
        ("head -c 12", "has ended before its time"),
        ("printf 'a[end]'", "text was lost"),
        (r"printf 'a\0b\0'", "text was lost"),
    ],
)
def test_a_program_that_dies_is_an_error(modes, script, message):
    modes("a-b", one=script, two="cat")
    with pytest.raises(UserError, match=message):
        Apertium("a-b", "a-b").forth(["some words", "and more words"])


def test_what_is_missing_is_named(modes, tmp_path):
    modes("a-b", one="cat")
    with pytest.raises(UserError, match=r"cannot translate b-a.*modes holds a-b: install.*apt-get install"):
        Apertium("a-b", "b-a").check()
    modes("b-a", one="cat", other="cat")
    Apertium("a-b", "b-a").check()
    (tmp_path / "other").unlink()
    with pytest.raises(UserError, match=r"b-a with Apertium: other, a program of it, is not installed"):
        Apertium("a-b", "b-a").check()
