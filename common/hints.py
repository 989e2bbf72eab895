"""What a user may have meant by a name that does not exist."""

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
    """`; did you mean train.lr or train.eps?`, the end of an error's sentence.

    Args:
        name: what was given.
        known: all names there are.
        most: names to propose.
        cutoff: from 0, where everything is near, to 1, where only the same name is.
        prefix: of each proposal, as `train.`.
        otherwise: what to say when nothing is near; by default nothing.
    """
    near = get_close_matches(str(name), list(known), n=most, cutoff=cutoff)
    if near:
        return f"; did you mean {' or '.join(prefix + each for each in near)}?"
    return f"; {otherwise}" if otherwise else ""
