"""A cloze test that needs no download: words and brackets of held-out text to complete."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from typing import NamedTuple

_LAST_WORD = re.compile(r"[A-Za-z']+(?=[.:;?!])")
_PATTERNS = {
    "code": {
        "identifiers": re.compile(r"\b[A-Za-z_][A-Za-z0-9_]{2,}\b"),
        "closing brackets": re.compile(r"[)\]}]"),
    },
    "prose": {"last words": _LAST_WORD},
    "licences": {"last words": _LAST_WORD},
}


class Blank(NamedTuple):
    """Tokens `[first, last)` of a text that are one word to complete."""

    kind: str
    first: int
    last: int


def find_blanks(tokens: Sequence[str], *, domain: str) -> list[Blank]:
    """Words whose first token begins with them, ignoring white space.

    Args:
        tokens: the strings of a text's tokens; together they are the text.
        domain: code asks for identifiers and closing brackets, the others for the last words of
            sentences and clauses.
    """
    text = "".join(tokens)
    starts, total = [], 0
    for token in tokens:
        starts.append(total)
        total += len(token)
    first_of: dict[int, int] = {}
    for number, (start, token) in enumerate(zip(starts, tokens, strict=True)):
        first_of.setdefault(start + len(token) - len(token.lstrip()), number)
    blanks = []
    for kind, pattern in _PATTERNS[domain].items():
        for match in pattern.finditer(text):
            first = first_of.get(match.start())
            # the first token of a text has no context to predict it from
            if first is None or first == 0 or keyword.iskeyword(match.group()):
                continue
            last = first + 1
            while last < len(tokens) and starts[last] < match.end():
                last += 1
            blanks.append(Blank(kind, first, last))
    return blanks
