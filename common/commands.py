"""How commands are named to the user: like the one that was called, `entrodrop` or a module."""

from __future__ import annotations

import os

CALLED_AS = "ENTRODROP_CALLED_AS"
"""Set by the console script, and so in all processes that it starts."""
_CONSOLE = "entrodrop"
_PARTS = {"training": "", "launch": "", "data_prep": " prep"}


def called_as_console() -> None:
    """From now on commands are named as verbs of `entrodrop`."""
    os.environ[CALLED_AS] = _CONSOLE


def command(words: str) -> str:
    """A command to be shown: `training export RUN` is `entrodrop export RUN` to who called that.

    Args:
        words: the package that has the verb, and what follows it.
    """
    package, _, rest = words.partition(" ")
    is_console = os.environ.get(CALLED_AS) == _CONSOLE
    name = f"{_CONSOLE}{_PARTS[package]}" if is_console else f"python -m {package}"
    return f"{name} {rest}" if rest else name


def with_commands(text: str) -> str:
    """A text of help, which is written with `python -m PACKAGE`, as `command` names them."""
    for package in _PARTS:
        text = text.replace(f"python -m {package} ", f"{command(package)} ")
    return text
