"""Recipes as YAML: read with overrides, all mistakes reported at once, and written back."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from common.hints import did_you_mean
from training.config.recipe import Recipe
from training.config.renamed import (
    RENAMED,
    new_name,
    with_list,
    with_new_names,
    without_other_form,
)
from training.config.shipped import find_recipe

KEPT_RECIPE = "recipe.resolved.yaml"
"""In a run folder: the recipe with every default written out."""


_FLOAT_TAG = "tag:yaml.org,2002:float"
_BOOL_TAG, _TEXT_TAG = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:str"
_EXPONENT = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
"""Numbers of YAML 1.2, JSON and Python that YAML 1.1 reads as text: 1e-5, 1.5e6."""


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-5 is a number, `on` a name before a colon, and a duplicate key an error.

    Plain YAML 1.1 reads text, true, and the last one.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ValueError(f"line {line}: expected a name before the colon")
            if key_node.tag == _BOOL_TAG:
                key_node.tag = _TEXT_TAG
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise ValueError(f"duplicate key {key!r} (again in line {line})")
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` would read as numbers."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(_FLOAT_TAG, _EXPONENT, list("-+.0123456789"))

_MESSAGES = {
    "tuple_type": "expected a list, as in [a, b]",
    "dataclass_type": "expected keys and values, as in {a: b}",
}
"""In the words of YAML, where pydantic has those of Python."""


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a YAML recipe and apply `a.b=c` overrides.

    Args:
        path: the recipe file, or the name of a shipped one.
        overrides: dotted keys with YAML values, for example `train.epochs=3`.

    Raises:
        ValueError: with every mistake of file and overrides in one message.
    """
    found = find_recipe(path)
    try:
        text = found.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"recipe {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"recipe {path}: not valid UTF-8: {error.reason} at byte {error.start}"
        ) from None
    raw = _parse_yaml(text, what=f"recipe {path}")
    if not isinstance(raw, dict):
        raise ValueError(f"recipe {path}: expected keys and values, found {type(raw).__name__}")
    used = {name for name in RENAMED if raw.get(name) is not None}
    try:
        raw = with_new_names(raw)
    except ValueError as error:
        raise ValueError(f"recipe {path}: {error}") from None
    for override in overrides or []:
        used |= RENAMED.keys() & {override.partition("=")[0]}
        raw = _with_override(raw, override)
    # not of the recipe that a run keeps: its keys were the names of its time
    if Path(path).name != KEPT_RECIPE and os.environ.get("RANK", "0") == "0":
        for name in sorted(used):
            print(f"{path}: {name} is now called {RENAMED[name]}", file=sys.stderr)
    return parse_recipe(raw, origin=str(path))


def parse_recipe(raw: dict[str, Any], *, origin: str = "recipe") -> Recipe:
    """Turn plain data into a `Recipe`; a `ValueError` lists every mistake, with similar names."""
    try:
        raw = with_list(raw)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from None
    mistakes = _mistakes_of_keys(Recipe, raw, prefix="")
    try:
        recipe = TypeAdapter(Recipe).validate_python(raw)
    except ValidationError as error:
        for item in error.errors():
            if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
                continue  # reported above, with the nearest valid key
            where = ".".join(str(part) for part in item["loc"])
            message = _MESSAGES.get(item["type"], item["msg"].removeprefix("Value error, "))
            given = "" if item["type"] in ("value_error", "missing") else f" (is {item['input']!r})"
            if item["type"] == "literal_error":
                names = re.findall(r"'([^']*)'", item["ctx"]["expected"])
                given += did_you_mean(item["input"], names)
            # what a section says of itself may begin with the key already
            is_named = not where or message.startswith((f"{where}.", f"{where}:"))
            mistakes.append(f"{'' if is_named else f'{where}: '}{message}{given}")
    if mistakes:
        raise ValueError(f"{origin}:\n" + "\n".join(f"  - {mistake}" for mistake in mistakes))
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out."""
    plain = TypeAdapter(Recipe).dump_python(recipe, mode="json")
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False)


def _with_override(raw: dict[str, Any], override: str) -> dict[str, Any]:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ValueError(f"override {override!r} is not of the form a.b=c, as in train.epochs=3")
    *parents, last = new_name(key).split(".")
    raw = without_other_form(raw, new_name(key))
    node = raw
    for parent in parents:
        if not isinstance(node.get(parent), dict):
            node[parent] = {}
        node = node[parent]
    node[last] = _parse_yaml(value, what=f"override {override!r}")
    return raw


def _parse_yaml(text: str, *, what: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{what}: {error}") from None
    except RecursionError:
        raise ValueError(f"{what}: nested too deeply") from None


def _mistakes_of_keys(section: Any, raw: Any, *, prefix: str) -> list[str]:
    """Unknown keys, and true or false where a number belongs: pydantic reads those as 1 and 0."""
    if not isinstance(raw, dict):
        return []
    hints = get_type_hints(section)
    known = [field.name for field in fields(section)]
    mistakes = []
    for key, value in raw.items():
        if key not in known:
            otherwise = f"valid: {', '.join(known)}"
            hint = did_you_mean(key, known, cutoff=0.5, prefix=prefix, otherwise=otherwise)
            if deeper := [] if prefix else _keys_called(key):
                hint = f"; did you mean {' or '.join(deeper)}?"
            mistakes.append(f"{prefix}{key}: unknown key{hint}")
        elif isinstance(value, bool) and hints[key] is not bool:
            mistakes.append(f"{prefix}{key}: must not be a boolean (is {value})")
        elif (nested := _section_of(hints[key])) is None:
            continue
        elif _holds_sections_by_name(hints[key]):
            for name, part in value.items() if isinstance(value, dict) else ():
                mistakes += _mistakes_of_keys(nested, part, prefix=f"{prefix}{key}.{name}.")
        else:
            mistakes += _mistakes_of_keys(nested, value, prefix=f"{prefix}{key}.")
    return mistakes


def _keys_called(name: Any, section: Any = Recipe, *, prefix: str = "") -> list[str]:
    """Keys of that name in sections of a recipe, dotted; not in those that have names of users."""
    hints = get_type_hints(section)
    found = [f"{prefix}{field.name}" for field in fields(section) if field.name == name]
    for key in (field.name for field in fields(section)):
        nested = _section_of(hints[key])
        if nested is not None and not _holds_sections_by_name(hints[key]):
            found += _keys_called(name, nested, prefix=f"{prefix}{key}.")
    return found


def _section_of(hint: Any) -> Any | None:
    """The dataclass in a type such as `Section`, `Section | None`, `dict[str, Section] | None`."""
    if isinstance(hint, type) and is_dataclass(hint):
        return hint
    return next((found for part in get_args(hint) if (found := _section_of(part))), None)


def _holds_sections_by_name(hint: Any) -> bool:
    return any(get_origin(part) is dict for part in (hint, *get_args(hint)))
