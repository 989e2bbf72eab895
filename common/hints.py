"""Suggestions for a name that does not exist."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(
    name: object,
    known: Iterable[str],
    *,
    most: int = 1,
    cutoff: float = 0.6,
    prefix: str = "",
    otherwise: str = "",
) -> str:
    """`; did you mean train.lr or train.eps?`, to end an error message.

    Args:
        name: the given name.
        known: all valid names.
        most: maximum number of suggestions.
        cutoff: similarity from 0, which everything has, to 1, which only the same name has.
        prefix: of each suggestion, such as `train.`.
        otherwise: text when no name is similar; by default none.
    """
    near = get_close_matches(str(name), list(known), n=most, cutoff=cutoff)
    if near:
        return f"; did you mean {' or '.join(prefix + each for each in near)}?"
    return f"; {otherwise}" if otherwise else ""
