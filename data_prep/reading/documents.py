"""A document, and what can be wrong with one: every refusal names file and line."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

OnError = Literal["fail", "skip"]


@dataclass(frozen=True)
class Document:
    """Text, or ids when the corpus is tokenised already."""

    content: str | np.ndarray
    num_bytes: int


@dataclass(frozen=True)
class ReadOptions:
    """Which field of a record holds the document, and what happens to a bad one."""

    text_key: str = "text"
    ids_key: str | None = None  # set: records hold ids, not text
    vocab_size: int = 0  # ids must lie below it
    on_error: OnError = "fail"

    @property
    def key(self) -> str:
        return self.ids_key or self.text_key


class BadInput(ValueError):
    """One document that cannot be used. Readers yield it; the caller raises or counts it."""

    def __init__(self, where: str, *, reason: str, detail: str = "", num_tokens: int = 0) -> None:
        super().__init__(f"{where}: {reason}{': ' if detail else ''}{detail}")
        self.reason = reason
        self.num_tokens = num_tokens  # lost with it, if that is known


@dataclass
class Intake:
    """What has been read so far: the ledger's first column, and how far the bytes are."""

    num_documents: int = 0
    num_empty: int = 0
    bad_by_reason: Counter[str] = field(default_factory=Counter)
    first_bad: list[str] = field(default_factory=list)
    num_tokens_left_out: int = 0
    num_bytes_read: int = 0


def text_document(content: bytes, *, where: str) -> Document | BadInput:
    try:
        return Document(content.decode("utf-8"), num_bytes=len(content))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return invalid_utf8(error, where=f"{where}:{line}")


def invalid_utf8(error: UnicodeDecodeError, *, where: str) -> BadInput:
    detail = f"byte 0x{error.object[error.start]:02x} ({error.reason})"
    return BadInput(where, reason="invalid UTF-8", detail=detail)


def checked_value(value: object, *, where: str, options: ReadOptions) -> Document | BadInput:
    """A field's value as a document, or what is wrong with it."""
    if isinstance(value, BadInput):
        return value
    if options.ids_key:
        return _checked_ids(value, where=where, options=options)
    if isinstance(value, bytes):
        return text_document(value, where=where)
    if not isinstance(value, str):
        detail = f"{options.key!r} holds {type(value).__name__}"
        return BadInput(where, reason="not text", detail=detail)
    try:
        return Document(value, num_bytes=len(value.encode("utf-8")))
    except UnicodeEncodeError as error:
        # JSON may spell half of a surrogate pair; no tokenizer takes it, and one such
        # document fails its whole batch.
        detail = f"U+{ord(value[error.start]):04X} at character {error.start}"
        return BadInput(where, reason="lone surrogate", detail=detail)


def _checked_ids(value: object, *, where: str, options: ReadOptions) -> Document | BadInput:
    if not isinstance(value, list) or any(type(item) is not int for item in value):
        detail = f"{options.key!r} must be a list of integers"
        return BadInput(where, reason="not ids", detail=detail)
    if value and not (0 <= min(value) <= max(value) < options.vocab_size):
        index = next(i for i, item in enumerate(value) if not 0 <= item < options.vocab_size)
        detail = f"{value[index]} at index {index}, vocabulary has {options.vocab_size}"
        reason = "id outside the vocabulary"
        return BadInput(where, reason=reason, detail=detail, num_tokens=len(value))
    return Document(np.array(value, dtype=np.uint32), num_bytes=4 * len(value))
