"""Starting from a trained model, or scoring with one: its folder gives the weights and the vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bkray.config import Recipe, UserError
from bkray.config.loading import parse_section
from bkray.config.model import Model
from bkray.corpus import load_tokenizer
from bkray.difficulty import has_hidden
from bkray.model import LanguageModel, build_model
from bkray.training.state.export import Exported, damage, load_model, misfit
from bkray.training.techniques.vocabulary import embed, token_pieces


def check_start(folder: Path, model: Model) -> None:
    """Raise UserError where `folder` holds no whole exported model, or one of another architecture."""
    exported_network("training.start_from", folder)
    _check_same(folder, model)


def _check_same(folder: Path, model: Model) -> None:
    there = parse_section(
        Exported, {"model": _config("training.start_from", folder)["model"]}, f"{folder}/config.json"
    ).model
    before, now = there.model_dump(), model.model_dump()
    differing = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if differing:
        shown = ", ".join(
            f"model.{key} is {now.get(key)!r} here and {before.get(key)!r} there" for key in differing
        )
        raise UserError(f"training.start_from {folder} is another model: {shown}: set the recipe's like its")


def load_start(network: nn.Module, folder: Path, model: Model, tokenizer: Path) -> None:
    """Give `network`, built from `model`, the weights of `folder`.

    Raises UserError where its architecture or its tokenizer is another.
    """
    _check_same(folder, model)
    there, here = (json.loads(path.read_text()) for path in (folder / "tokenizer.json", tokenizer))
    if there != here:
        raise UserError(
            f"training.start_from {folder} has another vocabulary than {tokenizer} "
            f"({_difference(there, here)}): its embedding would belong to other tokens; prepare the corpus "
            "with its tokenizer"
        )
    network.load_state_dict(load_model(folder).state_dict())


def load_overlapping(network: LanguageModel, folder: Path, model: Model, tokenizer: Path) -> dict[str, int]:
    """As `load_start`, for another tokenizer: the embedding is made of the folder's rows (`token_pieces`).

    Returns how many tokens are `shared` and how many are `new`. Raises UserError where the architecture is
    another.
    """
    _check_same(folder, model)
    pieces = token_pieces(load_tokenizer(folder / "tokenizer.json"), load_tokenizer(tokenizer))
    state = load_model(folder).state_dict()
    network.load_state_dict({**state, "embedding.weight": embed(state["embedding.weight"], pieces)})
    shared = sum(len(rows) == 1 for rows in pieces)
    return {"shared": shared, "new": len(pieces) - shared}


def check_scorer(setting: str, folder: Path, needs_hidden: bool) -> None:
    """Raise UserError where `folder` holds no exported model, or, if needed, one without final states."""
    network = exported_network(setting, folder)
    if needs_hidden and not has_hidden(network):
        raise UserError(
            f"{setting} {folder}: {type(network).__name__} has no hidden(tokens) and head(hidden), which "
            "selection.diversity and selection kind variation_ratio need: give it both, or select otherwise"
        )


def exported_network(setting: str, folder: Path) -> nn.Module:
    """The network of an exported model without its weights, which are read once and not kept.

    Raises UserError where `folder` holds none, where its files do not belong together, and where a weight is
    not finite.
    """
    config = _config(setting, folder)
    if (tokens := _tokens(setting, folder)) != config["vocab_size"]:
        raise UserError(
            f"{setting} {folder}: tokenizer.json has {tokens} tokens, but the model of config.json is for a "
            f"vocab_size of {config['vocab_size']}: put the files of one model together"
        )
    exported = parse_section(Exported, {"model": config["model"]}, f"{folder}/config.json")
    with torch.device("meta"):
        network = build_model(exported.model, config["vocab_size"])
    if words := misfit(network, _meta_tensors(setting, folder)):
        raise UserError(f"{setting} {folder}: {words}: put the files of one model together")
    if words := damage(folder, config):
        raise UserError(f"{setting} {folder}: {words}")
    return network


def _tokens(setting: str, folder: Path) -> int:
    _tokenizer(setting, str(folder))  # names the setting where it cannot be read
    try:
        return load_tokenizer(folder / "tokenizer.json").get_vocab_size()
    except UserError as error:
        raise UserError(f"{setting} {error}") from error


def _meta_tensors(setting: str, folder: Path) -> dict[str, Tensor]:
    """What the weights' file holds, on the meta device, looked through one by one."""
    found = {}
    with safe_open(folder / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 - it cannot be iterated
            tensor = file.get_tensor(name)
            if not tensor.isfinite().all():
                raise UserError(f"{setting} {folder}: {name} holds NaN or infinity: export the model anew")
            found[name] = tensor.to("meta")
    return found


def check_vocabularies(folders: Mapping[str, str]) -> None:
    """Raise UserError where the exported models that a recipe names, by setting, have other vocabularies, or
    none that can be read."""
    read = [(setting, folder, _tokenizer(setting, folder)) for setting, folder in folders.items()]
    for setting, folder, tokenizer in read[1:]:
        first, other, expected = read[0]
        if tokenizer != expected:
            raise UserError(
                f"{setting} {folder} has another vocabulary than {first} {other}, whose tokenizer the corpus "
                f"gets ({_difference(tokenizer, expected)}): name a model that was trained with the same "
                "tokenizer"
            )


def _difference(tokenizer: Any, other: Any) -> str:
    """What differs between two tokenizers that are not the same, by their files."""
    tokens, others = (dict(each.get("model", {}).get("vocab", ())) for each in (tokenizer, other))
    if lacking := [token for token in tokens if token not in others]:
        return f"of its {len(tokens):,} tokens {len(lacking):,} are not there, {lacking[0]!r} among them"
    if len(tokens) < len(others):
        return f"it has {len(tokens):,} of the {len(others):,} tokens there"
    return "the same tokens" + (", but other ids" if tokens != others else ", but other rules")


def _tokenizer(setting: str, folder: str) -> Any:
    try:
        return json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{setting} {folder}: tokenizer.json cannot be read ({type(error).__name__}: {error}): name the "
            "folder model/ of a run"
        ) from None


def vocabulary_size(recipe: Recipe) -> int:
    """Token ids at most: the recipe's, or those of the exported model whose tokenizer it takes."""
    for setting, folder in recipe.tokenizer_models.items():
        return int(_config(setting, Path(folder))["vocab_size"])
    return recipe.tokenizer.vocab_size


def _config(setting: str, folder: Path) -> dict[str, Any]:
    """What config.json says of the model; raises UserError where it or the weights' file is not whole."""
    try:
        config = json.loads((folder / "config.json").read_text())
        config = {**config, "model": config["model"], "vocab_size": int(config["vocab_size"])}
        with safe_open(folder / "model.safetensors", "pt"):  # compares the header with the file's length
            return config
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"{setting} {folder} holds no exported model ({type(error).__name__}: {error}): name the folder "
            "model/ of a run"
        ) from None
