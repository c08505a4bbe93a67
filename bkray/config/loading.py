"""From a YAML file and dotted overrides to a checked recipe; every fault is reported at once."""

from __future__ import annotations

import copy
import difflib
import functools
import json
import operator
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
    values, faults = _overridden(read_recipe(path), overrides)
    try:
        recipe = parse_recipe(values, origin=str(path))
    except UserError as error:
        faults.append(str(error))
    if faults:
        raise UserError("\n".join(faults))
    return recipe


def parse_recipe(values: Mapping[str, Any], origin: str = "recipe") -> Recipe:
    """Check `values` against the recipe's models; `origin` opens the error message.

    Values that start from an exported model and leave `model` out, or null, take its.
    """
    taken = _model_of_start(values)
    try:
        return parse_section(Recipe, {**values, **(taken or {})}, origin)
    except UserError as error:
        if taken is not None:
            raise
        raise UserError(
            f"{error}\n  training.start_from {values['training']['start_from']} holds no exported model, so "
            "the default one was looked at: name the folder model/ of a run"
        ) from error


def _model_of_start(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The section `model` of the exported model that `training.start_from` names, if it does.

    None where it cannot be read; a folder that holds no model is refused later, with its reason.
    """
    training = values.get("training")
    folder = training.get("start_from") if isinstance(training, Mapping) else None
    if not isinstance(folder, str) or values.get("model") is not None:
        return {}
    try:
        return {"model": json.loads((Path(folder) / "config.json").read_text())["model"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def parse_section(model: type[M], values: Mapping[str, Any], origin: str) -> M:
    """Validate `values` as `model`; raise UserError with one line a fault."""
    try:
        return model.model_validate(values)
    except ValidationError:
        lines = _faults(model, copy.deepcopy(dict(values)), frozenset())
    raise UserError(f"{origin}:\n" + "\n".join(f"  {line}" for line in dict.fromkeys(lines)))


def _faults(model: type[BaseModel], values: dict[str, Any], left_out: frozenset[str]) -> list[str]:
    """One line a fault of `values`, which it mends as far as it can, to look again.

    Pydantic looks at what does not fit together where every key is right by itself. For a key or value with
    no nearest known one the default is taken, and no line that names such a key counts any more.
    """
    try:
        model.model_validate(values)
        return []
    except ValidationError as error:
        faults: list[Any] = error.errors()
    misspelt = {(*f["loc"][:-1], _nearest(model, f)) for f in faults if f["type"] == "extra_forbidden"}
    faults = [f for f in faults if f["type"] != "missing" or f["loc"] not in misspelt]
    lines = [line for fault in faults for line in _describe(model, fault).split("\n")]
    lines = [line for line in lines if not left_out & set(re.findall(r"\w+", line))]
    for fault in reversed(faults):  # from the end of a list
        *path, key = _keys(values, fault["loc"]) or [None]
        if key is None:
            return lines
        section = functools.reduce(operator.getitem, path, values)
        nearest = _nearest(model, fault)
        if nearest and fault["type"] == "extra_forbidden":
            section.setdefault(nearest, section.pop(key))
        elif nearest and isinstance(section[key], dict):
            section[key]["kind"] = nearest
        elif nearest:
            section[key] = nearest
        else:
            left_out |= {str(key)}
            del section[key]
    return lines + _faults(model, values, left_out)


def _keys(values: Any, location: Iterable[Any]) -> list[Any]:
    """The parts of `location` that are keys and positions in `values`: not the kinds that pydantic adds."""
    keys = []
    for part in location:
        if part in values if isinstance(values, dict) else isinstance(values, list) and isinstance(part, int):
            keys.append(part)
            values = values[part]
    return keys


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read the keys of a recipe, and those of its `base`, a path relative to it, that it does not change.

    Raises UserError where a file cannot be read or is its own base.
    """
    return _on_its_base(Path(path), ())


def _on_its_base(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    values = read_yaml(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UserError(f"{path}: base: {base!r} is not the path of a recipe, relative to this one")
    above = (*above, path.resolve())
    if (path.parent / base).resolve() in above:
        raise UserError(f"{path}: base: {base} has this recipe itself as its base: name another")
    return _merged(_on_its_base(path.parent / base, above), values)


def _merged(base: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` over `base`, key by key in sections; lists, null and sections of another kind replace."""
    merged = dict(base)
    for key, value in values.items():
        there = base.get(key)
        if isinstance(there, dict) and isinstance(value, dict):
            kind = there.get("kind")
            merged[key] = _merged(there, value) if value.get("kind", kind) == kind else value
        else:
            merged[key] = value
    return merged


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
    result, faults = _overridden(values, overrides)
    if faults:
        raise UserError("\n".join(faults))
    return result


def _overridden(values: Mapping[str, Any], overrides: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """A copy of `values` with what can be set, and a line for each override that cannot."""
    result: dict[str, Any] = json.loads(json.dumps(values, default=str))
    faults = []
    for override in overrides:
        try:
            _set(result, override)
        except UserError as error:
            faults.append(str(error))
    return result, faults


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


def _describe(model: type[BaseModel], fault: Any) -> str:
    shown = _shown(model, fault["loc"], last_is_key=fault["type"] == "extra_forbidden")
    nearest = _nearest(model, fault)
    if fault["type"] == "extra_forbidden":
        known = ", ".join(_known_keys(model, fault["loc"][:-1]))
        return f"{shown}: unknown key; " + (f"did you mean {nearest}?" if nearest else f"known keys: {known}")
    if fault["type"] in ("literal_error", "union_tag_invalid"):
        value, choices = _choice(fault)
        hint = f"did you mean {nearest}?" if nearest else f"choose from {', '.join(choices)}"
        kind = ".kind" if fault["type"] == "union_tag_invalid" else ""
        return f"{shown}{kind}: {value!r} is unknown; {hint}"
    if fault["type"] == "union_tag_not_found":
        return f"{shown}: needs a kind"
    if fault["type"] == "missing":
        return f"{shown}: missing"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":  # of several, each has its line
        return "\n".join(f"{shown}: {line}" if shown else line for line in message.split("\n"))
    return f"{shown}: {message}, but it is {fault['input']!r}"


def _nearest(model: type[BaseModel], fault: Any) -> str | None:
    """The known key or value that the one at fault is most like; None where none is, and for other faults."""
    if fault["type"] == "extra_forbidden":
        written, known, cutoff = fault["loc"][-1], _known_keys(model, fault["loc"][:-1]), 0.5
    elif fault["type"] in ("literal_error", "union_tag_invalid"):
        (written, known), cutoff = _choice(fault), 0.6
    else:
        return None
    return next(iter(difflib.get_close_matches(str(written), known, n=1, cutoff=cutoff)), None)


def _choice(fault: Any) -> tuple[Any, list[str]]:
    """The value that is none of those known, and these."""
    known = fault["ctx"].get("expected") or fault["ctx"]["expected_tags"]
    return fault["ctx"].get("tag", fault["input"]), re.findall(r"'([^']*)'", known)


def _shown(model: type[BaseModel], location: tuple[Any, ...], last_is_key: bool) -> str:
    """The location as users wrote it: without a union's kinds and ~tags, which pydantic adds."""
    parts = []
    for position, part in enumerate(location):
        is_key = last_is_key and position == len(location) - 1
        added = str(part).startswith("~") or str(part) in _kinds(model, location[:position])
        if is_key or not added:
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
