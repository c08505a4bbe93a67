"""From a YAML file and dotted overrides to a checked recipe; every fault is reported at once."""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from bkray.config.errors import UserError
from bkray.config.recipe import Recipe

M = TypeVar("M", bound=BaseModel)


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read the recipe at `path` and apply overrides such as ``training.lr=3e-4``.

    Raises UserError naming every fault, each with the nearest known key or value.
    """
    return parse_recipe(apply_overrides(read_yaml(path), overrides), origin=str(path))


def parse_recipe(values: Mapping[str, Any], origin: str = "recipe") -> Recipe:
    """Check `values` against the recipe's models; `origin` opens the error message.

    Values that start from an exported model and leave `model` out, or null, take its.
    """
    return parse_section(Recipe, {**values, **_model_of_start(values)}, origin)


def _model_of_start(values: Mapping[str, Any]) -> dict[str, Any]:
    """The section `model` of the exported model that `training.start_from` names, where it can be read.

    A folder that holds none is refused later, with its reason.
    """
    training = values.get("training")
    folder = training.get("start_from") if isinstance(training, Mapping) else None
    if not isinstance(folder, str) or values.get("model") is not None:
        return {}
    try:
        return {"model": json.loads((Path(folder) / "config.json").read_text())["model"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def parse_section(model: type[M], values: Mapping[str, Any], origin: str) -> M:
    """Validate `values` as `model`; raise UserError with one line a fault."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_describe(model, fault) for fault in error.errors()]
        raise UserError(f"{origin}:\n" + "\n".join(f"  {line}" for line in dict.fromkeys(lines))) from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping with the safe loader; raise UserError where that cannot be done."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{_nearby(Path(path))}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys and values, found {type(values).__name__}")
    return values


def apply_overrides(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return a copy of `values` with each ``dotted.key=value`` set; values are read as YAML.

    Raises UserError with one line an override that cannot be set.
    """
    result: dict[str, Any] = json.loads(json.dumps(values, default=str))
    faults = []
    for override in overrides:
        try:
            _set(result, override)
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("\n".join(faults))
    return result


def _set(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r} must read key=value, for example training.lr=3e-4")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: the value is not valid YAML: {error}") from None
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = {}
        elif not isinstance(child, dict):
            raise UserError(f"override {override!r}: {parent} holds {child!r}, which has no keys of its own")
        node[parent] = child
        node = child
    node[last] = value


def dump_yaml(model: BaseModel) -> str:
    """The model as YAML, every default spelt out: the text of `resolved.yaml`."""
    return yaml.safe_dump(model.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _nearby(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (nor is there a folder {path.parent})"
    names = [p.name for p in path.parent.iterdir() if p.suffix in {".yaml", ".yml"}]
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""


def _describe(model: type[BaseModel], fault: Any) -> str:  # noqa: PLR0911 - one return a type of fault
    shown = _shown(model, fault["loc"], last_is_key=fault["type"] == "extra_forbidden")
    if fault["type"] == "extra_forbidden":
        known = _known_keys(model, fault["loc"][:-1])
        close = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
        return f"{shown}: unknown key; {hint}"
    if fault["type"] == "union_tag_invalid":
        return f"{shown}.kind: {_suggest(fault['ctx']['tag'], _quoted(fault['ctx']['expected_tags']))}"
    if fault["type"] == "union_tag_not_found":
        return f"{shown}: needs a kind"
    if fault["type"] == "literal_error":
        return f"{shown}: {_suggest(fault['input'], _quoted(fault['ctx']['expected']))}"
    if fault["type"] == "missing":
        return f"{shown}: missing"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{shown}: {message}" if shown else message
    return f"{shown}: {message}, but it is {fault['input']!r}"


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _suggest(value: Any, known: list[str]) -> str:
    close = difflib.get_close_matches(str(value), known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"
    return f"{value!r} is unknown; {hint}"


def _shown(model: type[BaseModel], location: tuple[Any, ...], last_is_key: bool) -> str:
    """The location as users wrote it: without the kinds that pydantic adds for a union's member."""
    parts = []
    for position, part in enumerate(location):
        is_key = last_is_key and position == len(location) - 1
        if is_key or str(part) not in _kinds(model, location[:position]):
            parts.append(str(part))
    return ".".join(parts)


def _kinds(model: type[BaseModel], location: Iterable[Any]) -> set[str]:
    return {kind for candidate in _models_at(model, location) for kind in get_args(_kind_of(candidate))}


def _known_keys(model: type[BaseModel], location: Iterable[Any]) -> list[str]:
    return sorted({key for candidate in _models_at(model, location) for key in candidate.model_fields})


def _models_at(model: type[BaseModel], location: Iterable[Any]) -> list[type[BaseModel]]:
    """The models that may stand at `location`, whose parts are keys, list positions and kinds."""
    candidates: list[type[BaseModel]] = [model]
    for part in location:
        inner = [c.model_fields[str(part)].annotation for c in candidates if str(part) in c.model_fields]
        if inner:
            candidates = [m for annotation in inner for m in _models(annotation)]
        elif not isinstance(part, int):
            candidates = [c for c in candidates if str(part) in get_args(_kind_of(c))] or candidates
    return candidates


def _kind_of(model: type[BaseModel]) -> Any:
    field = model.model_fields.get("kind")
    return field.annotation if field else None


def _models(annotation: Any) -> list[type[BaseModel]]:
    if get_origin(annotation) in (Annotated, Union, types.UnionType, tuple, list, dict):
        return [m for inner in get_args(annotation) for m in _models(inner)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
