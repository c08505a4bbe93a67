"""Translation models of Hugging Face: a tiny untrained Marian where transformers is, else the error."""

import json
import random
import re
import shutil
from importlib.util import find_spec

import pytest

from bkray.augmentation import check_augmentations
from bkray.augmentation.hugging_face import HuggingFace, split_sentences
from bkray.config import UserError
from bkray.config.preparation import BackTranslation

HERE = bool(find_spec("transformers") and find_spec("sentencepiece"))
needs_transformers = pytest.mark.skipif(not HERE, reason="transformers and sentencepiece are not here")
SENTENCE = "the scan of a matrix returns every row that an operator keeps while values and keys are sorted"


def section(name):
    translator = {"kind": "hugging_face", "forth": name, "back": name}
    return BackTranslation.model_validate({"kind": "back_translation", "translator": translator})


@pytest.mark.skipif(HERE, reason="transformers is installed")
def test_without_transformers_the_error_says_how_to_install_it():
    with pytest.raises(UserError, match=r"pip install transformers sentencepiece.*kind to apertium"):
        check_augmentations([section("Helsinki-NLP/opus-mt-en-es")])


def test_sentences_end_at_stops_and_empty_lines_and_a_million_blanks_take_no_time():
    gap = re.compile(r"((?<=[.!?:;])\s+|\s*\n\s*\n\s*)")
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choices("ab. !\n\t\u00a0", k=rng.randrange(30)))
        assert split_sentences(text) == gap.split(text)
    assert split_sentences("a" + " " * 1_000_000 + "b") == ["a" + " " * 1_000_000 + "b"]


@pytest.fixture(scope="module")
def marian(tmp_path_factory):
    """A folder with an untrained Marian of a few thousand weights and a vocabulary of its own."""
    import sentencepiece
    import torch
    from transformers import MarianConfig, MarianMTModel, MarianTokenizer

    folder = tmp_path_factory.mktemp("marian")
    rng = random.Random(0)
    (folder / "text").write_text(
        "\n".join(" ".join(rng.choices(SENTENCE.split(), k=9)) + " ." for _ in range(400))
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "source"),
        vocab_size=39,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "source.model"))
    names = [pieces.id_to_piece(i) for i in range(pieces.get_piece_size()) if i > 2]
    vocabulary = {name: i for i, name in enumerate(["</s>", "<unk>", *names, "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    model = str(folder / "source.model")
    MarianTokenizer(model, model, str(folder / "vocab.json")).save_pretrained(folder / "model")
    torch.manual_seed(0)
    shape = {
        f"{side}_{what}": n
        for side in ("encoder", "decoder")
        for what, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
    }
    last = len(vocabulary) - 1
    config = MarianConfig(
        vocab_size=len(vocabulary), d_model=32, max_position_embeddings=64, pad_token_id=last,
        eos_token_id=0, decoder_start_token_id=last, forced_eos_token_id=0, init_std=1.0, **shape,
    )  # fmt: skip
    MarianMTModel(config).save_pretrained(folder / "model")
    return str(folder / "model")


@needs_transformers
def test_a_model_translates_sentences_and_leaves_the_gaps(marian):
    translator = HuggingFace(marian, marian)
    translator.check()
    title, first, second = (
        "= the keys and values of a matrix =",
        "the scan of a matrix returns every\nrow .",
        "values and keys are sorted .",
    )
    text = f"{title}\n\n{first}  {second}\n\n{'-' * 9}\n"
    (made,) = translator.forth([text])
    assert made != text
    alone = [translator.forth([part])[0] for part in (title, first, second)]
    assert len(set(alone)) == 3
    assert made == f"{alone[0]}\n\n{alone[1]}  {alone[2]}\n\n{'-' * 9}\n"
    assert translator.forth([first.replace("\n", " ")]) == [alone[1]], "a line break is a space"
    assert translator.forth(["keys .", text]) == [translator.forth(["keys ."])[0], made]
    assert translator.back([text]) == [made], "the same model"


@needs_transformers
def test_what_is_too_long_for_the_model_stays(marian):
    endless = "matrix " * 200 + "."
    (made,) = HuggingFace(marian, marian).forth([f"{endless} keys ."])
    assert made.startswith(f"{endless} ")
    assert not made.endswith(" keys .")


@needs_transformers
def test_a_model_that_is_not_here_is_one_message(tmp_path):
    with pytest.raises(UserError, match=r"example/none is no translation model.*hf download example/none"):
        check_augmentations([section("example/none")])
    with pytest.raises(UserError, match="name a folder that holds one"):
        check_augmentations([section(str(tmp_path))])


@needs_transformers
@pytest.mark.parametrize("lost", ["model.safetensors", "source.spm", "vocab.json"])
def test_a_model_that_lacks_a_file_is_found_before_it_works(marian, tmp_path, lost):
    folder = shutil.copytree(marian, tmp_path / "model")
    HuggingFace(str(folder), marian).check()
    (folder / lost).unlink()
    with pytest.raises(UserError, match=rf"{folder} is no translation model .* name a folder that holds one"):
        HuggingFace(marian, str(folder)).check()


@needs_transformers
def test_weights_in_parts_are_looked_for_by_their_index(marian, tmp_path):
    folder = shutil.copytree(marian, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model-1-of-2.safetensors")
    (folder / "model-2-of-2.safetensors").write_bytes(b"")
    parts = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    HuggingFace(marian, str(folder)).check()
    (folder / "model-2-of-2.safetensors").unlink()
    with pytest.raises(UserError, match=r"there is no model-2-of-2\.safetensors"):
        HuggingFace(marian, str(folder)).check()


@needs_transformers
def test_a_model_of_the_hub_is_looked_for_in_its_cache(marian, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cache = tmp_path / "models--example--en-es"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    held = shutil.copytree(marian, cache / "snapshots" / "abc")
    HuggingFace("example/en-es", marian).check()
    (held / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"hf download example/en-es.* \(there is no model\.safetensors or "):
        HuggingFace("example/en-es", marian).check()
