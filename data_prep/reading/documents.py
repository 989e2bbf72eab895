"""A document, made of the fields of a record, and what can be wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from data_prep.reading.fields import Fields, proposal, value_at, what_is_there

OnError = Literal["fail", "skip"]
OnLoss = Literal["fail", "count"]
Messages = list[dict[str, Any]]
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
}
IGNORED_LABEL = -100  # of Hugging Face's collators and of torch's cross-entropy


@dataclass(frozen=True)
class Document:
    """Text, ids of tokenised input, or a conversation."""

    content: str | np.ndarray | Messages
    place: int
    """Where in its file: first byte of its line, or row, depending on the format."""
    mask: np.ndarray | None = None
    """[ids] uint8, 1 for a target; with ids only."""
    rendered: str = ""
    """The text that the ids of a conversation encode."""


class BadInput(ValueError):
    """One document that cannot be used. Readers yield it; the build raises or counts it."""

    def __init__(self, place: int, *, reason: str, detail: str = "", num_tokens: int = 0) -> None:
        super().__init__(place, reason, detail, num_tokens)
        self.place = place
        self.reason = reason
        self.detail = detail
        self.num_tokens = num_tokens  # lost with it, if known

    def __reduce__(self) -> tuple[Any, ...]:
        return _bad_input, self.args

    def with_hint(self, hint: str) -> BadInput:
        """The same with more detail."""
        return BadInput(
            self.place,
            reason=self.reason,
            detail=self.detail + hint,
            num_tokens=self.num_tokens,
        )

    def at(self, place: int) -> BadInput:
        """The same at another place."""
        return BadInput(place, reason=self.reason, detail=self.detail, num_tokens=self.num_tokens)

    def sentence(self, where: str) -> str:
        return f"{where}: {self.reason}{': ' if self.detail else ''}{self.detail}"


def _bad_input(place: int, reason: str, detail: str, num_tokens: int) -> BadInput:
    return BadInput(place, reason=reason, detail=detail, num_tokens=num_tokens)


def document_of(record: Mapping[str, Any], *, place: int, wanted: Fields) -> Document | BadInput:
    """The document that a record holds, or what is wrong with it.

    Ids are not checked against the vocabulary here.
    """
    values: dict[str, Any] = {}
    for key in wanted.as_dict().values():
        try:
            values[key] = value_at(record, key)
        except KeyError:
            detail = what_is_there(record, key) + proposal(record, key, wanted=wanted)
            return BadInput(place, reason=f"missing key {key!r}", detail=detail)
        if isinstance(values[key], BadInput):
            bad: BadInput = values[key]
            return bad
    record = values
    if wanted.text:
        return text_document(record[wanted.text], place=place, key=wanted.text)
    if wanted.ids:
        return _ids_document(record, place=place, wanted=wanted)
    if wanted.messages:
        messages = record[wanted.messages]
        return _conversation(messages, place=place, key=wanted.messages)
    prompt, completion = record[str(wanted.prompt)], record[str(wanted.completion)]
    if isinstance(prompt, str) and isinstance(completion, str):
        messages = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": completion},
        ]
    elif isinstance(prompt, list) and isinstance(completion, list):
        messages = prompt + completion  # both may be lists of messages, as in TRL
    else:
        detail = "prompt and completion must both be text or both be lists of messages"
        return BadInput(place, reason="not a conversation", detail=detail)
    return _conversation(messages, place=place, key=f"{wanted.prompt}+{wanted.completion}")


def text_document(value: object, *, place: int, key: str = "text") -> Document | BadInput:
    """A text as a document: valid UTF-8 if it comes as bytes, no lone surrogates."""
    if isinstance(value, bytes):
        try:
            return Document(value.decode("utf-8"), place=place)
        except UnicodeDecodeError as error:
            line = value.count(b"\n", 0, error.start) + 1
            return invalid_utf8(error, place=place, where=f"line {line}")
    if not isinstance(value, str):
        detail = f"{key!r} holds {type(value).__name__}"
        return BadInput(place, reason="not text", detail=detail)
    return _lone_surrogate(value, place=place) or Document(value, place=place)


def invalid_utf8(error: UnicodeDecodeError, *, place: int, where: str = "") -> BadInput:
    where = where or f"byte {error.start + 1} of the line"
    detail = f"0x{error.object[error.start]:02x} at {where} ({error.reason})"
    return BadInput(place, reason="invalid UTF-8", detail=detail)


def _lone_surrogate(text: str, *, place: int) -> BadInput | None:
    """JSON may contain a lone surrogate; no tokenizer accepts it, and its whole batch fails."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        detail = f"U+{ord(text[error.start]):04X} at character {error.start}"
        return BadInput(place, reason="lone surrogate", detail=detail)
    return None


def _ids_document(record: Mapping[str, Any], *, place: int, wanted: Fields) -> Document | BadInput:
    ids = _integers(record[str(wanted.ids)], place=place, key=str(wanted.ids))
    if isinstance(ids, BadInput):
        return ids
    key = wanted.loss_mask or wanted.labels
    if key is None:
        return Document(ids, place=place)
    marks = _integers(record[key], place=place, key=key, or_booleans=bool(wanted.loss_mask))
    if isinstance(marks, BadInput):
        return marks
    if len(marks) != len(ids):
        detail = f"{key!r} has {len(marks)} entries, {wanted.ids!r} has {len(ids)}"
        return BadInput(place, reason="mask of another length", detail=detail, num_tokens=len(ids))
    if wanted.labels:
        is_target = marks != IGNORED_LABEL
        wrong = np.flatnonzero(is_target & (marks != ids))
        what = f"the id or {IGNORED_LABEL}"
    else:
        is_target = marks != 0
        wrong = np.flatnonzero((marks != 0) & (marks != 1))
        what = "0 or 1"
    if len(wrong):
        detail = f"{key!r} holds {marks[wrong[0]]} at index {wrong[0]}, expected {what}"
        return BadInput(place, reason="not a mask", detail=detail, num_tokens=len(ids))
    return Document(ids, place=place, mask=is_target.astype(np.uint8))


def _integers(
    value: object, *, place: int, key: str, or_booleans: bool = False
) -> np.ndarray | BadInput:
    # To Python and numpy true is 1, a valid id; a list of booleans is most likely a mask.
    types = (int, bool) if or_booleans else (int,)
    if isinstance(value, np.ndarray) and value.dtype.kind in ("iub" if or_booleans else "iu"):
        if value.dtype == np.uint64 and len(value) and value.max() >= 2**63:
            return BadInput(place, reason="not ids", detail=f"{key!r} has an id above 2^63")
        return value.astype(np.int64)
    if isinstance(value, list) and all(type(item) in types for item in value):
        try:
            return np.array(value, dtype=np.int64)
        except OverflowError:
            return BadInput(place, reason="not ids", detail=f"{key!r} has an id above 2^63")
    return BadInput(place, reason="not ids", detail=f"{key!r} must be a list of integers")


def _conversation(value: object, *, place: int, key: str) -> Document | BadInput:
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        detail = f"{key!r} must be a list of messages"
        return BadInput(place, reason="not a conversation", detail=detail)
    if (bad := _unequal_weights(value, place=place)) is not None:
        return bad
    # Arrow fills up with null what other rows have
    if any(turn.get("role") is None and turn.get("from") is not None for turn in value):
        value = _from_sharegpt(value, place=place)
        if isinstance(value, BadInput):
            return value
    for number, turn in enumerate(value):
        if not isinstance(turn.get("role"), str):
            detail = f"message {number} has no role"
            return BadInput(place, reason="not a conversation", detail=detail)
        content = turn.get("content")
        if isinstance(content, str) and (bad := _lone_surrogate(content, place=place)):
            return bad
    return Document(value, place=place)


def _unequal_weights(turns: Messages, *, place: int) -> BadInput | None:
    """Refuse answers that other trainers leave out of the loss: here every answer is a target."""
    for number, turn in enumerate(turns):
        speaker = turn.get("role") or turn.get("from")
        is_answer = isinstance(speaker, str) and _SHAREGPT_ROLES.get(speaker) == "assistant"
        if is_answer and turn.get("weight") not in (None, 1):
            detail = (
                f"message {number} has the weight {turn['weight']!r}, but every answer is a "
                "target; leave out `weight`, or give ids with a loss_mask"
            )
            return BadInput(place, reason="not a conversation", detail=detail)
    return None


def _from_sharegpt(turns: Messages, *, place: int) -> Messages | BadInput:
    """Messages of turns with `from` and `value`, as in ShareGPT's files."""
    messages = []
    for number, turn in enumerate(turns):
        speaker, words = turn.get("from"), turn.get("value")
        role = _SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None or not isinstance(words, str):
            known = ", ".join(_SHAREGPT_ROLES)
            detail = f"message {number} is from {speaker!r}, known are {known}"
            if role is not None:
                detail = f"message {number} has no text in 'value'"
            return BadInput(place, reason="not a conversation", detail=detail)
        messages.append({"role": role, "content": words})
    return messages
