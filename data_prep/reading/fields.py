"""The names of the record fields that make up a document."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

DocumentKind = Literal["text", "ids", "chat"]


@dataclass(frozen=True)
class Fields:
    """Names of the record fields that make up a document; unset ones are not read.

    A field within another is named with a dot: `meta.text`.

    One of `text`, `ids`, `messages` or `prompt` with `completion`. With `ids`, `loss_mask` (1
    for a target) or `labels` (the id, or -100) may mark which tokens are targets.
    """

    text: str | None = None
    ids: str | None = None
    loss_mask: str | None = None
    labels: str | None = None
    messages: str | None = None
    prompt: str | None = None
    completion: str | None = None
    split_after: int | None = None
    """The id that ends each document in a flat array of many."""

    def __post_init__(self) -> None:
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("fields prompt and completion go together: name both or neither")
        contents = [n for n in ("text", "ids", "messages", "prompt") if getattr(self, n)]
        if len(contents) != 1:
            raise ValueError(
                "fields: a record needs one of text, ids, messages, or prompt with completion; "
                f"found {' and '.join(contents) or 'none'}"
            )
        marks = [name for name in ("loss_mask", "labels") if getattr(self, name)]
        if len(marks) > 1 or (marks and not self.ids):
            raise ValueError(
                f"fields: {' and '.join(marks)}: one of loss_mask and labels, and only with ids"
            )

    @property
    def main_keys(self) -> tuple[str | None, ...]:
        """Of what a document is; the others mark parts of it."""
        return (self.text, self.ids, self.messages, self.prompt, self.completion)

    @property
    def kind(self) -> DocumentKind:
        return "text" if self.text else "ids" if self.ids else "chat"

    @property
    def has_mask(self) -> bool:
        return bool(self.kind == "chat" or self.loss_mask or self.labels)

    def roots(self, names: Collection[str]) -> list[str]:
        """Those of a record's own fields that hold what is wanted, each once."""
        keys = self.as_dict().values()
        return list(dict.fromkeys(k if k in names else k.partition(".")[0] for k in keys))

    def part_of(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """What is wanted of a record, or all of it, for an error, if a field is missing."""
        roots = self.roots(record)
        return {key: record[key] for key in (roots if {*roots} <= record.keys() else record)}

    def as_dict(self) -> dict[str, str]:
        return {role: getattr(self, role) for role in ROLES if getattr(self, role)}


ROLES = tuple(field.name for field in fields(Fields) if field.name != "split_after")


_USUAL_TEXTS = ("content", "raw_content", "body", "article", "document")


def value_at(record: Mapping[str, Any], key: str) -> Any:
    """A field of a record, or, where it has none of this name, one within its fields.

    Raises:
        KeyError: if there is neither.
    """
    if key in record:
        return record[key]
    value: Any = record
    for name in key.split("."):
        if not isinstance(value, Mapping):
            if isinstance(value, Exception):
                return value  # what is wrong with the field that holds it
            raise KeyError(key)
        value = value[name]
    return value


def what_is_there(record: Mapping[str, Any], key: str) -> str:
    """The keys of the object in which a field is missing, or what is there instead of one."""
    value: Any = record
    within = ""
    for name in key.split("."):
        if not isinstance(value, Mapping):
            return f"{within!r} holds {type(value).__name__}"
        if name not in value:
            break
        value, within = value[name], f"{within}.{name}".lstrip(".")
    keys = ", ".join(sorted(map(str, value))[:8]) or "none"
    return f"keys of {within!r}: {keys}" if within else f"keys: {keys}"


def proposal(record: Mapping[str, Any], key: str, *, wanted: Fields) -> str:
    """Which flags to try, for an error about a missing field; "" where that is not plain."""
    flags = _likely_flags(record) if key in wanted.main_keys else ""
    return f"; perhaps {flags}" if flags else ""


def _likely_flags(record: Mapping[str, Any]) -> str:
    lists = {name: value[0] for name, value in record.items() if isinstance(value, list) and value}
    for role, kind in (("messages", Mapping), ("ids", int)):
        found = [  # a list of booleans is most likely a mask
            name
            for name, first in lists.items()
            if isinstance(first, kind) and not isinstance(first, bool)
        ]
        if len(found) == 1:
            return f"--field {shlex.quote(f'{role}={found[0]}')}"
    for prompt, completion in (("prompt", "completion"), ("instruction", "output")):
        if {prompt, completion} <= record.keys():
            return f"--field prompt={prompt} --field completion={completion}"
    found = [name for name in _USUAL_TEXTS if isinstance(record.get(name), str)]
    return f"--field text={found[0]}" if len(found) == 1 else ""
