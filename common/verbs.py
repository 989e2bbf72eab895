"""Commands with verbs: each verb is a module with its help, arguments and entry point."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from common.commands import with_commands
from common.hints import did_you_mean


def add_verbs(parser: argparse.ArgumentParser, *, package: str, names: Iterable[str]) -> None:
    """Add verbs to a parser; parsed options then have `verb` and `run`, which takes the options.

    Args:
        package: of the modules, one for each name, with `_` for `-`. Each has SUMMARY, DESCRIPTION,
            add_arguments and run. They import what they need in run, so that --help and usage
            errors answer at once.
    """
    add_version(parser)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    add_each_verb(verbs, package=package, names=names)


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add `--version`, which says that of the whole project."""
    parser.add_argument("--version", action=_Version)


class _Version(argparse._VersionAction):
    """Looks for the version only when it is asked for: that takes a while."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any, **options: Any) -> None:
        self.version = f"entrodrop {_version()}"
        super().__call__(parser, *args, **options)


def _version() -> str:
    """A clone's, also where another one is installed; what pip installed has no such file."""
    import tomllib
    from importlib.metadata import PackageNotFoundError, version

    clone = Path(__file__).parents[1]
    if (clone / "pyproject.toml").is_file():
        project = tomllib.loads((clone / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return f"{project['version']}, from {clone}"
    try:
        return version("entrodrop")
    except PackageNotFoundError:  # only the packages were copied
        return "of an unknown version"


def refuse_argument(text: str, *, parser: argparse.ArgumentParser, verb: str) -> NoReturn:
    """End with a usage error that names the option of the verb that `text` is nearest to."""
    verbs = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    hint = did_you_mean(text.partition("=")[0], verbs.choices[verb]._option_string_actions)
    parser.error(f"{text}: unknown argument{hint}; see {verb} --help")


def add_each_verb(verbs: Any, *, package: str, names: Iterable[str]) -> None:
    """The same for what `add_subparsers` of a parser has returned."""
    for name in names:
        module = importlib.import_module(f"{package}.{name.replace('-', '_')}")
        verb = verbs.add_parser(
            name,
            help=module.SUMMARY,
            description=with_commands(module.DESCRIPTION),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(verb)
        verb.set_defaults(run=module.run)
