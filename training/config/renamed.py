"""Recipe keys that have a new name or a short form: the old ones still work."""

from __future__ import annotations

from typing import Any

from training.config.regularisers import in_one_order

RENAMED = {"beside": "extra_regulariser"}
"""By their old name; top-level keys of a recipe."""
LIST, SHORT_FORMS = "regularisers", ("regulariser", "extra_regulariser")
"""`regulariser: X` with `extra_regulariser: Y` is `regularisers: [X, Y]`."""
_FIRST = "entrodrop"


def with_new_names(raw: dict[str, Any]) -> dict[str, Any]:
    """The recipe under today's names.

    Raises:
        ValueError: for a key that is set under both names.
    """
    for old, new in RENAMED.items():
        if old in raw and new in raw:
            raise ValueError(f"{old} is the old name of {new}: set only one of them")
    return {RENAMED.get(key, key): value for key, value in raw.items()}


def with_list(raw: dict[str, Any]) -> dict[str, Any]:
    """The recipe under today's names, with its regularisers in one list.

    Raises:
        ValueError: for a recipe that has both a list and a short form, or a list in one.
    """
    raw = with_new_names(raw)
    short = {key: raw.pop(key) for key in SHORT_FORMS if key in raw}
    for key, value in short.items():
        if isinstance(value, list):
            listed = ", ".join(map(str, value))
            raise ValueError(f"{key} takes one name; for a list: {LIST}: [{listed}]")
    first, extra = (short.get(key) for key in SHORT_FORMS)
    if LIST not in raw:
        names = [short.get(SHORT_FORMS[0], _FIRST), *([] if extra is None else [extra])]
        return raw | {LIST: in_one_order(names)} if short else raw
    if first is not None or extra is not None:
        raise ValueError(f"{LIST} and {' and '.join(short)}: set only {LIST}")
    names = [raw[LIST]] if isinstance(raw[LIST], str) else raw[LIST]
    return raw | {LIST: in_one_order(names) if isinstance(names, list) else names}


def without_other_form(raw: dict[str, Any], key: str) -> dict[str, Any]:
    """The recipe before an override of the key: it takes the place of the other form."""
    replaced = {LIST: SHORT_FORMS, SHORT_FORMS[0]: (LIST,)}.get(key, ())
    return {name: value for name, value in raw.items() if name not in replaced}


def new_name(dotted_key: str) -> str:
    """Today's name of a key of an override, or of a field of a checkpoint's recipe."""
    first, dot, rest = dotted_key.partition(".")
    return RENAMED.get(first, first) + dot + rest
