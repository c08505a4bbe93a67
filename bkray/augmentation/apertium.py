"""Apertium (apertium.org), a rule-based translator: the installed programs of a language pair.

    texts ─► stream format ─► analysis ─► tagger ─► transfer, generation ─► stream format ─► texts
                              └ a call ┘  └ a document ┘  └ a call ┘

A call takes many documents, with a NUL after each: starting the programs takes as long as 5,000 words. The
tagger remembers ambiguities that it has met and then tags otherwise; it gets a process a document, so that a
translation depends on its document alone. In the stream format a superblank `[…]` is layout, which is not
translated. Code (names with dots, underscores and the like) travels as made-up words, which no dictionary
knows and every rule leaves alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bkray.config import UserError

CALL_CHARS = 50_000
"""Characters of a call, unless one document is longer."""

_END = "[end]"
_SPECIAL = re.compile(r"[\\\[\]{}^$/@<>]")
_PIECE = re.compile(r"(?P<prompt>(?<!\S)>>> .*\S)|(?P<gap>\s+)|(?P<word>\S+)", re.ASCII)
_LEFT, _RIGHT = "\"'([{`*,;:!?¿¡", "\"')]}`*.,;:!?"
_CODE = re.compile(r"[_\\/@#<>=\[\](){}^$|~*+&%`]|\w[.:]\w|\d[^\W\d]|[^\W\d]\d")
_PLACEHOLDER = re.compile(r"xqz([a-p]+)zqx", re.IGNORECASE)
_DIGITS = str.maketrans("0123456789abcdef", "abcdefghijklmnop")
_VALUES = str.maketrans("abcdefghijklmnop", "0123456789abcdef")
_LAYOUT = re.compile(r"\[(?P<blank>(?:[^\\\[\]]|\\.)*)\]|(?P<words>(?:[^\\\[]|\\.)+)", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


class Apertium:
    """Translates by the installed modes `forth` and `back`, such as eng-spa and spa-eng.

    Both ways raise UserError where a program is missing or ends badly, or where CALL_CHARS characters take
    longer than `timeout_s` seconds.
    """

    def __init__(self, forth: str = "eng-spa", back: str = "spa-eng", timeout_s: float = 200.0) -> None:
        self.modes, self.timeout_s = (forth, back), timeout_s

    def forth(self, texts: Sequence[str]) -> list[str]:
        return self._translated(texts, self.modes[0])

    def back(self, texts: Sequence[str]) -> list[str]:
        return self._translated(texts, self.modes[1])

    def check(self) -> None:
        """Raise UserError where a mode or one of its programs is not installed."""
        for name in self.modes:
            mode = read_mode(name)
            programs = [command[0] for command in (*mode.analysis, mode.tagger or ["true"], *mode.transfer)]
            if missing := [program for program in programs if not shutil.which(program)]:
                raise UserError(_missing(name, f"{missing[0]}, a program of it, is not installed"))

    def _translated(self, texts: Sequence[str], name: str) -> list[str]:
        mode = read_mode(name)
        return [made for call in _calls(texts) for made in self._call(call, name, mode)]

    def _call(self, texts: list[str], name: str, mode: Mode) -> list[str]:
        codes: list[list[str]] = [[] for _ in texts]
        parts = [to_stream(text, code) for text, code in zip(texts, codes, strict=True)]
        limit = self.timeout_s * max(1.0, sum(map(len, texts)) / CALL_CHARS)
        until = time.monotonic() + limit
        try:
            parts = _run(mode.analysis, parts, until)
            if mode.tagger:
                parts = [_run([mode.tagger], [part], until)[0] for part in parts]
            parts = _run(mode.transfer, parts, until)
        except FileNotFoundError as error:
            raise UserError(_missing(name, f"{error.filename} is not installed")) from None
        except subprocess.TimeoutExpired:
            raise UserError(
                f"augmentation back_translation: Apertium's {name} did not finish {sum(map(len, texts)):,} "
                f"characters in {limit:.0f} s and was ended: see whether `echo house | apertium {name}` "
                "answers, and leave it more of the machine (fewer --cpus)"
            ) from None
        if len(parts) < len(texts) or not all(part.endswith(_END) for part in parts):
            raise UserError(_died(name, "text was lost"))
        return [from_stream(part[: -len(_END)], code) for part, code in zip(parts, codes, strict=True)]


@dataclass(frozen=True)
class Mode:
    """The programs of a direction in order, those before the tagger and those after it."""

    analysis: list[list[str]]
    tagger: list[str] | None
    transfer: list[list[str]]


def read_mode(name: str) -> Mode:
    """The installed mode `name`: a shell pipeline; $1 is an option of its generator, $2 of its tagger."""
    folder = Path(os.environ.get("APERTIUM_DATADIR", "/usr/share/apertium")) / "modes"
    try:
        pipeline = (folder / f"{name}.mode").read_text()
    except FileNotFoundError:
        known = ", ".join(sorted(path.stem for path in folder.glob("*.mode"))) or "none at all"
        raise UserError(_missing(name, f"{folder} holds {known}")) from None
    plain = pipeline.replace("$1", "-n").replace("$2", "")  # -n: no marks at unknown words
    commands = [shlex.split(part) for part in plain.split("|")]
    for place, command in enumerate(commands):
        if command[0] == "apertium-tagger":
            return Mode(_flushing(commands[:place]), command, _flushing(commands[place + 1 :]))
    return Mode([], None, _flushing(commands))


def _flushing(commands: list[list[str]]) -> list[list[str]]:
    return [[command[0], "-z", *command[1:]] for command in commands]


def to_stream(text: str, code: list[str]) -> str:
    """`text` in the stream format, up to its end mark; what is code goes into `code`, in order."""
    pieces = []
    for match in _PIECE.finditer(text.replace("\0", " ")):
        piece = match.group()
        if match["word"]:
            pieces.append(_word(piece, code))
        elif match["gap"]:
            stop = ".[]" if piece.count("\n") > 1 else ""  # a blank line ends a sentence
            pieces.append(stop + (" " if piece == " " else f"[{piece}]"))
        else:
            pieces.append(f"[{_SPECIAL.sub(_escaped, piece)}]")
    return "".join(pieces) + ".[]" + _END


def _word(word: str, code: list[str]) -> str:
    rest = word.lstrip(_LEFT)
    core = rest.rstrip(_RIGHT)
    left, right = word[: len(word) - len(rest)], rest[len(core) :]
    if _CODE.search(core) and any(character.isalpha() for character in core):
        code.append(core)
        core = f"xqz{format(len(code) - 1, 'x').translate(_DIGITS)}zqx"
    return "".join(_SPECIAL.sub(_escaped, part) for part in (left, core, right))


def _escaped(match: re.Match[str]) -> str:
    return "\\" + match.group()


def from_stream(stream: str, code: list[str]) -> str:
    """The text of a translated `stream` without its end mark; a made-up word without its code stays."""
    text = ""
    for match in _LAYOUT.finditer(stream):
        content = _ESCAPE.sub(r"\1", match["blank"] or match["words"] or "")
        if match["words"]:  # where a rule drops a word, the spaces beside it stay
            plain = re.sub(" {2,}", " ", content)
            text += plain.lstrip(" ") if text[-1:].isspace() else plain
        elif not content:
            text = text.removesuffix(".")
        elif content[0].isspace() and text.endswith(" "):
            text = text[:-1] + content
        else:
            text += content

    def named(match: re.Match[str]) -> str:
        index = int(match[1].lower().translate(_VALUES), 16)
        return code[index] if index < len(code) else match.group()

    return _PLACEHOLDER.sub(named, text)


def _calls(texts: Sequence[str]) -> Iterator[list[str]]:
    """`texts` in order, in groups of up to CALL_CHARS characters; an empty one is a call like any other."""
    group: list[str] = []
    size = 0
    for text in texts:
        if group and size + len(text) > CALL_CHARS:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    if group:
        yield group


def _run(commands: list[list[str]], parts: list[str], until: float) -> list[str]:
    """`parts` through the pipeline `commands`; its programs all end with it, at `until` at the latest."""
    if not commands:
        return parts
    pipeline = " | ".join(map(shlex.join, commands))
    shell = ["bash", "-c", f"set -o pipefail; {pipeline}"]
    process = subprocess.Popen(
        shell if len(commands) > 1 else commands[0],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        start_new_session=True,
    )
    try:
        sent = "".join(part + "\0" for part in parts).encode()
        out, errors = process.communicate(sent, timeout=max(0.1, until - time.monotonic()))
    finally:
        _end(process)
    received = out.decode().split("\0")[: len(parts)]
    if process.returncode:
        said = errors.decode(errors="replace").strip()[-300:]
        raise UserError(_died(commands[0][-1], f"code {process.returncode}, {said or 'without a word'}"))
    return received


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):  # all have ended by themselves
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe:
            pipe.close()


def _died(what: str, how: str) -> str:
    return (
        f"augmentation back_translation: a program of Apertium has ended before its time ({what}: {how}): "
        "see whether there is memory enough, and whether `echo house | apertium eng-spa` works"
    )


def _missing(name: str, how: str) -> str:
    return (
        f"augmentation back_translation cannot translate {name} with Apertium: {how}: install the language "
        "pair on every machine that works (on Debian `apt-get install apertium-eng-spa`), name another under "
        "translator.forth and .back, or set translator.kind to hugging_face"
    )
