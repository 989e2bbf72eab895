"""Recipe keys that have a new name: the old one still works."""

from __future__ import annotations

from typing import Any

RENAMED = {"beside": "extra_regulariser"}
"""By their old name; top-level keys of a recipe."""


def with_new_names(raw: dict[str, Any]) -> dict[str, Any]:
    """The recipe under today's names.

    Raises:
        ValueError: for a key that is set under both names.
    """
    for old, new in RENAMED.items():
        if old in raw and new in raw:
            raise ValueError(f"{old} is the old name of {new}: set only one of them")
    return {RENAMED.get(key, key): value for key, value in raw.items()}


def new_name(dotted_key: str) -> str:
    """Today's name of a key of an override, or of a field of a checkpoint's recipe."""
    first, dot, rest = dotted_key.partition(".")
    return RENAMED.get(first, first) + dot + rest
