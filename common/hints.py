"""Suggestions for a name, or a folder, that does not exist."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


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


def no_folder(folder: Path) -> str:
    """`there is no folder runs/man/exprt; did you mean runs/main?`, as an error message."""
    missing = folder
    while not missing.parent.is_dir():
        missing = missing.parent
    siblings = [path.name for path in missing.parent.iterdir() if path.is_dir()]
    prefix = "" if missing.parent == Path() else f"{missing.parent / 'x'}"[:-1]
    return f"there is no folder {folder}{did_you_mean(missing.name, siblings, prefix=prefix)}"
