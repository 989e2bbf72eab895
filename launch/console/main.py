"""The command `entrodrop`: every command of this project under one name, from any folder."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from common.commands import called_as_console
from common.exits import exit_code_of, heed_ctrl_c

# Modules with VERBS, main and end_process; not imported here, since each loads what others do not.
_MODULES = ("training.__main__", "launch.__main__")
_PREP = "data_prep.__main__"


def main() -> None:
    """The console script; a user error is one message and exit code 2."""
    heed_ctrl_c()  # the other imports take longer
    called_as_console()
    # processes that this one starts: a common.py in the folder that it is called in is not ours
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    verb, rest = (sys.argv[1] if sys.argv[1:] else "--help"), sys.argv[2:]
    if verb == "prep":
        _hand_over(_PREP, rest)
    for name in _MODULES:
        if verb in importlib.import_module(name).VERBS:
            _hand_over(name, sys.argv[1:])
    from launch.console.own_verbs import run_own_verb

    sys.exit(exit_code_of(lambda: run_own_verb(verb, rest)))


def _hand_over(name: str, arguments: list[str]) -> None:
    """Does not return: how a process ends is known to the module."""
    module: Any = importlib.import_module(name)
    module.end_process(module.main(arguments))
