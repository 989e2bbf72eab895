"""Names of what is kept beside a corpus: its scores, its lists of what cleaning removes."""

from __future__ import annotations

import re

NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$"


def checked_name(name: str, *, what: str = "") -> str:
    """The name itself.

    Args:
        what: said before it in a message, such as "--name ".

    Raises:
        ValueError: when it would be no part of a folder's name on every system.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise ValueError(
            f"{what}{name!r}: use at most 64 letters, digits, '_', '-' and '.', the last two not "
            "first"
        )
    return name
