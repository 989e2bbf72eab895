"""The names of the record fields that make up a document."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

DocumentKind = Literal["text", "ids", "chat"]


@dataclass(frozen=True)
class Fields:
    """Names of the record fields that make up a document; unset ones are not read.

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
    def kind(self) -> DocumentKind:
        return "text" if self.text else "ids" if self.ids else "chat"

    @property
    def has_mask(self) -> bool:
        return bool(self.kind == "chat" or self.loss_mask or self.labels)

    def as_dict(self) -> dict[str, str]:
        return {role: getattr(self, role) for role in ROLES if getattr(self, role)}


ROLES = tuple(field.name for field in fields(Fields) if field.name != "split_after")
