"""Checks that a rendered conversation holds what its messages say: templates leave things out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

Messages = list[dict[str, Any]]

ASSISTANT = "assistant"
_CALLS = "tool_calls"
_THOUGHT_END = "</think>"
# Some templates put these in front of the last question, or all at the beginning.
_ANYWHERE = ("system", "developer")


def check_says_something(message: dict[str, Any], *, number: int) -> None:
    """Refuse an answer of white space, from which a model would learn to end its turn at once."""
    if message.get("role") != ASSISTANT or message.get(_CALLS):
        return
    if not any(text.strip() for text in _texts(message.get("content"))):
        raise ValueError(f"message {number}: the assistant says nothing")


def check_nothing_left_out(messages: Messages, *, rendered: str) -> None:
    """Refuse what the template leaves out of a conversation.

    Contents are looked for in their order, without the white space around them, which templates
    trim; of an answer only what follows its thoughts, which they drop by design.

    Raises:
        ValueError: which message, and what of it.
    """
    place = 0
    for number, message in enumerate(messages):
        begin = place
        for text in _texts(message.get("content")):
            if message.get("role") == ASSISTANT:
                text = text.rpartition(_THOUGHT_END)[2]
            is_anywhere = message.get("role") in _ANYWHERE
            end = _end_of(text.strip(), rendered=rendered, start=0 if is_anywhere else place)
            if end is None:
                raise ValueError(
                    f"message {number}: the chat template leaves out its content, or changes it"
                )
            place = place if is_anywhere else end
        for name in _names_of_calls(message, number=number):
            # A template may write calls before the content.
            end = _end_of(name, rendered=rendered, start=begin)
            if end is None:
                raise ValueError(f"message {number}: the chat template leaves out its {_CALLS}")
            begin = end


def strings_of(value: Any) -> Iterator[str]:
    """Every text in a message, keys included: templates print tool arguments as JSON."""
    left = [value]  # no recursion: the user decides the depth
    while left:
        item = left.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            left += [*map(str, item), *item.values()]
        elif isinstance(item, list):
            left += item


def _texts(content: Any) -> list[str]:
    """The text of a message, or of each of its parts."""
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return [text for text in texts if isinstance(text, str)]


def _names_of_calls(message: dict[str, Any], *, number: int) -> list[str]:
    calls = message.get(_CALLS) or []
    names = [_name_of(call) for call in calls] if isinstance(calls, list) else [None]
    if not all(names):
        raise ValueError(
            f"message {number}: {_CALLS} must be a list of objects that name a function each"
        )
    return [str(name) for name in names]


def _name_of(call: Any) -> str | None:
    function = call.get("function", call) if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _end_of(text: str, *, rendered: str, start: int) -> int | None:
    """Where a text ends in the rendering, as it is or as JSON: results of tools may be printed so.

    The first place that holds it is the right one to go on from: any other leaves less.
    """
    as_json = json.dumps(text, ensure_ascii=False)[1:-1]
    found = [(rendered.find(form, start), len(form)) for form in {text, as_json}]
    ends = [place + length for place, length in found if place >= 0]
    return min(ends, default=None)
