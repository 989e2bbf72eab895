"""Commands with verbs: each verb is a module with its help, arguments and entry point."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterable
from typing import Any


def add_verbs(parser: argparse.ArgumentParser, *, package: str, names: Iterable[str]) -> None:
    """Add verbs to a parser; parsed options then have `verb` and `run`, which takes the options.

    Args:
        package: of the modules, one for each name, with `_` for `-`. Each has SUMMARY, DESCRIPTION,
            add_arguments and run. They import what they need in run, so that --help and usage
            errors answer at once. Examples in their help name the command as `python -m PACKAGE`,
            and are shown with the parser's own name.
    """
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    add_each_verb(verbs, prog=parser.prog, package=package, names=names)


def add_each_verb(verbs: Any, *, prog: str, package: str, names: Iterable[str]) -> None:
    """The same for what `add_subparsers` of a parser called `prog` has returned."""
    as_module = f"python -m {package.partition('.')[0]} "
    for name in names:
        command = importlib.import_module(f"{package}.{name.replace('-', '_')}")
        verb = verbs.add_parser(
            name,
            help=command.SUMMARY,
            description=command.DESCRIPTION.replace(as_module, f"{prog} "),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(verb)
        verb.set_defaults(run=command.run)
