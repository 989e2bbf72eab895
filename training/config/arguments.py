"""Recipes on command lines: a file, and `a.b=c` overrides in any position."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from common.verbs import refuse_argument


def add_recipe(verb: argparse.ArgumentParser) -> None:
    """Add `recipe` and `overrides` to a verb."""
    verb.add_argument(
        "recipe", metavar="RECIPE", help="YAML file of the run; docs/recipes.md explains every key"
    )
    add_overrides(verb)


def add_overrides(verb: argparse.ArgumentParser) -> None:
    """Add `overrides`, which `load_recipe` takes, to a verb."""
    verb.add_argument(
        "overrides",
        nargs="*",
        default=[],  # else argparse says that some are required
        metavar="a.b=c",
        help="change keys of the recipe, as in train.epochs=3",
    )


def parse_arguments(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> argparse.Namespace:
    """Like argparse, but overrides may also follow an option."""
    options, later = parser.parse_known_args(argv)
    overrides = getattr(options, "overrides", None)
    if wrong := [each for each in later if overrides is None or each.startswith("-")]:
        refuse_argument(wrong[0], parser=parser, verb=options.verb)
    if overrides is not None:
        options.overrides = [*overrides, *later]
    return options
