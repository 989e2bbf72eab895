"""Renamed recipe keys: the old names still work."""

from __future__ import annotations

from typing import Any

RENAMED = {"beside": "extra_regulariser"}
"""New names by old name; keys of a recipe's top level."""


def with_new_names(raw: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The recipe with the current names, and the old names that it used.

    Raises:
        ValueError: for a key that is set under both names.
    """
    used = [name for name in RENAMED if name in raw]
    for name in used:
        if RENAMED[name] in raw:
            raise ValueError(f"{name} is the old name of {RENAMED[name]}: set only one of them")
    return {RENAMED.get(key, key): value for key, value in raw.items()}, used
