"""Translation models of the Hugging Face hub, such as Helsinki-NLP/opus-mt-en-es, through `transformers`.

text ─► sentences ─► a batch a document ─► greedy search ─► sentences, with the gaps that were between them
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from bkray.config import UserError

_BLANKS = re.compile(r"(\s+)")
_STOPS = (".", "!", "?", ":", ";")
_SENTENCES = 16  # a batch, of one document: what is padded beside a sentence may round it differently
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_LONGEST = 4  # times as many tokens as went in, and 16 more, may come out


class HuggingFace:
    """Translates by two models, each a folder or a name of the hub that is in its cache.

    Nothing is downloaded here: workers would do it all at once. Line breaks within a sentence become spaces;
    a sentence that is longer than the model takes stays as it is.
    """

    def __init__(self, forth: str, back: str) -> None:
        self.models = (forth, back)

    def check(self) -> None:
        """Raise UserError where transformers, or a file of a model, is missing on this machine.

        Tokenizers are loaded; of the weights, which take long, the files are looked for.
        """
        if find_spec("transformers") is None or find_spec("sentencepiece") is None:
            raise UserError(
                "augmentation back_translation with translator.kind hugging_face needs the packages "
                "transformers and sentencepiece: `pip install transformers sentencepiece` on every machine "
                "that works, or set translator.kind to apertium"
            )
        from transformers import AutoConfig, AutoTokenizer

        for name in self.models:
            _loaded(name, AutoConfig)
            _loaded(name, AutoTokenizer)
            if missing := _missing_weights(name):
                raise _unreadable(name, f"there is no {missing}")

    def forth(self, texts: Sequence[str]) -> list[str]:
        return [_translated(text, *_model(self.models[0])) for text in texts]

    def back(self, texts: Sequence[str]) -> list[str]:
        return [_translated(text, *_model(self.models[1])) for text in texts]


@cache
def _model(name: str) -> tuple[Any, Any]:
    """Tokenizer and model, loaded once a process."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return _loaded(name, AutoTokenizer), _loaded(name, AutoModelForSeq2SeqLM).to(device).eval()


def _loaded(name: str, kind: Any) -> Any:
    try:
        return kind.from_pretrained(name, local_files_only=True)
    except Exception as error:  # a tokenizer without its files raises anything
        raise _unreadable(name, (str(error).strip() or type(error).__name__).splitlines()[0]) from error


def _unreadable(name: str, reason: str) -> UserError:
    way = "name a folder that holds one" if Path(name).exists() else f"`hf download {name}` on every machine"
    return UserError(
        f"augmentation back_translation: {name} is no translation model that can be read here: {way} "
        f"({reason})"
    )


def _missing_weights(name: str) -> str | None:
    """The file of weights that is not here, in one piece or in several that an index names; None: all are."""
    if any(_local(name, file) for file in _WEIGHTS):
        return None
    indexes = [index for file in _WEIGHTS if (index := _local(name, f"{file}.index.json"))]
    if not indexes:
        return " or ".join(_WEIGHTS)
    parts = sorted(set(json.loads(indexes[0].read_text())["weight_map"].values()))
    return next((part for part in parts if not _local(name, part)), None)


def _local(name: str, file: str) -> Path | None:
    """A file of a model, in its folder or in the cache of the hub."""
    from transformers.utils import cached_file

    try:
        return Path(cached_file(name, file, local_files_only=True))
    except OSError:
        return None


def split_sentences(text: str) -> list[str]:
    """Sentence, gap, sentence, …: blanks are a gap after a stop, or where they hold an empty line.

    The time is linear in the length: one expression for gaps looks through blanks again from each of them.
    """
    first, *rest = _BLANKS.split(text)
    parts, sentence = [], [first]
    for blanks, word in zip(rest[::2], rest[1::2], strict=True):
        if sentence[-1].endswith(_STOPS) or blanks.count("\n") > 1:
            parts += ["".join(sentence), blanks]
            sentence = [word]
        else:
            sentence += [blanks, word]
    return [*parts, "".join(sentence)]


@torch.inference_mode()
def _translated(text: str, tokenizer: Any, model: Any) -> str:
    parts = split_sentences(text)
    places = [place for place in range(0, len(parts), 2) if re.search(r"[^\W\d_]", parts[place])]
    longest = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    lengths = {place: len(tokenizer(" ".join(parts[place].split())).input_ids) for place in places}
    places = [place for place in places if lengths[place] <= longest]
    for begin in range(0, len(places), _SENTENCES):
        batch = places[begin : begin + _SENTENCES]
        sentences = [" ".join(parts[place].split()) for place in batch]
        inputs = tokenizer(sentences, return_tensors="pt", padding=True).to(model.device)
        most = min(longest, _LONGEST * max(lengths[place] for place in batch) + 16)
        made = model.generate(**inputs, max_length=most, num_beams=1, do_sample=False)
        for place, sentence in zip(
            batch, tokenizer.batch_decode(made, skip_special_tokens=True), strict=True
        ):
            parts[place] = sentence
    return "".join(parts)
