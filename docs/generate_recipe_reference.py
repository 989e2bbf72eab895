"""Write docs/recipes.md from the dataclasses of a recipe and their docstrings."""

from __future__ import annotations

import ast
import dataclasses
import sys
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import annotated_types
from pydantic.fields import FieldInfo

from training.config.recipe import Recipe

REPO_ROOT = Path(__file__).resolve().parents[1]
_INTRODUCTION = """\
# Recipe keys

A recipe is one YAML file: everything that decides what is learnt. It names one DeepSpeed JSON in
`ds_configs/`, which holds memory and communication and nothing else. What a recipe does not state
has the default below. An unknown key is an error that names the nearest valid one, and all
mistakes of a recipe come in one message. The resolved recipe, every default written out, is kept
in the run folder as `recipe.resolved.yaml`.

Any key can be changed on the command line, with its dotted name:

```bash
launch/local.sh training/recipes/quickstart.yaml train.epochs=3 dropout.max_rate=0.2
```

This page is written by `python -m docs.generate_recipe_reference` out of
the dataclasses in `training/config/`; a test fails when it is out of date.
"""


def reference() -> str:
    """The whole page."""
    comments = {
        key: text
        for path in (REPO_ROOT / "training" / "config").glob("*.py")
        for key, text in field_docstrings(path).items()
    }
    return _INTRODUCTION + _section(Recipe, prefix="", comments=comments)


def field_docstrings(path: Path) -> dict[tuple[str, str], str]:
    """The string below each field of each class, by class and field name.

    Python does not keep these strings, so they are read from the source.
    """
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, below in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                found[node.name, field.target.id] = " ".join(str(below.value.value).split())
    return found


def _section(section: type, *, prefix: str, comments: dict[tuple[str, str], str]) -> str:
    hints = get_type_hints(section, include_extras=True)
    title = f"`{prefix[:-1]}`" if prefix else "Top level"
    lines = [f"\n## {title}\n", f"{section.__doc__}\n", "| key | value | default | meaning |"]
    lines.append("|---|---|---|---|")
    nested = []
    for field in dataclasses.fields(section):  # type: ignore[arg-type]
        if dataclasses.is_dataclass(hints[field.name]):
            nested.append((hints[field.name], f"{prefix}{field.name}."))
            continue
        meaning = comments.get((section.__name__, field.name), "")
        cells = (f"`{prefix}{field.name}`", _kind(hints[field.name]), _default(field), meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        if (kind := _section_in(hints[field.name])) is not None:
            by_name = any(get_origin(part) is dict for part in get_args(hints[field.name]))
            nested.append((kind, f"{prefix}{field.name}.{'NAME.' if by_name else ''}"))
    page = "\n".join(lines) + "\n"
    return page + "".join(_section(kind, prefix=name, comments=comments) for kind, name in nested)


def _section_in(hint: Any) -> Any | None:
    """The dataclass in a type such as `Section | None` or `dict[str, Section] | None`."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint
    if get_origin(hint) is Annotated:
        return _section_in(get_args(hint)[0])
    return next((found for part in get_args(hint) if (found := _section_in(part))), None)


def _kind(hint: Any) -> str:
    """The type and its range in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        base, *bounds = arguments
        limits = [text for bound in bounds for text in _limits(bound)]
        return " ".join([_kind(base), ", ".join(limits)]).strip()
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, UnionType):
        parts = ["null" if part is type(None) else _kind(part) for part in arguments]
        return " or ".join(parts)
    if origin is tuple:
        return f"list of {_kind(arguments[0])}"
    names = {int: "integer", float: "number", str: "text", bool: "true, false"}
    return names.get(hint, "keys and values")


def _limits(bound: Any) -> list[str]:
    if isinstance(bound, FieldInfo):
        return [text for part in bound.metadata for text in _limits(part)]
    signs = {
        annotated_types.Ge: ("ge", "≥"),
        annotated_types.Gt: ("gt", ">"),
        annotated_types.Le: ("le", "≤"),
        annotated_types.Lt: ("lt", "<"),
    }
    return [
        f"{sign} {getattr(bound, name):g}"
        for kind, (name, sign) in signs.items()
        if isinstance(bound, kind)
    ]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    if isinstance(field.default, tuple):
        return f"`[{', '.join(map(str, field.default))}]`"
    return "null" if field.default is None else f"`{field.default}`"


if __name__ == "__main__":
    page = REPO_ROOT / "docs" / "recipes.md"
    page.write_text(reference(), encoding="utf-8")
    print(page.relative_to(REPO_ROOT), file=sys.stderr)
