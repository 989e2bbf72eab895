"""What `entrodrop` has beside the verbs of its parts: help, launchers, a shell's completion."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import Any

from common.hints import did_you_mean
from common.verbs import add_each_verb, add_version
from launch.console.launchers import LAUNCHERS, launch

_DESCRIPTION = """\
Train a causal LM on little data without overfitting: from raw text to a Hugging Face folder.
RECIPE is a file, or the name of a recipe that comes with the package, as qwen3_8b.

examples:
  entrodrop new notes --model Qwen/Qwen3-0.6B
  entrodrop prep build --input notes/ --tokenizer Qwen/Qwen3-0.6B --out data/notes
  entrodrop plan qwen3_8b --gpus 64 --gpu-gib 80
  entrodrop launch local recipe.yaml train.epochs=3
  entrodrop launch slurm recipe.yaml --nodes=8 --ntasks-per-node=8 --gpus-per-node=8
  entrodrop report runs/notes
"""
_SHELLS = ("bash", "zsh", "tcsh")
_ABOUT_COMPLETION = """\
Print a script that completes verbs, options and file names; it needs the package shtab.

  source <(entrodrop completion bash)          # this shell
  entrodrop completion bash > ~/.local/share/bash-completion/completions/entrodrop
"""


def run_own_verb(verb: str, rest: list[str]) -> int:
    """Run `launch` or `completion`, or explain what there is."""
    if verb == "launch":
        return launch(rest)
    parser, verbs = build_parser(with_prep=False)
    if not verb.startswith("-") and verb not in verbs:
        parser.error(f"{verb}: unknown verb{did_you_mean(verb, verbs)}; see entrodrop --help")
    options = parser.parse_args([verb, *rest])
    return _print_completion(options.shell)


def build_parser(*, with_prep: bool) -> tuple[argparse.ArgumentParser, list[str]]:
    """All verbs with their arguments, and their names.

    Args:
        with_prep: also the verbs of `prep`, which load numpy.
    """
    parser = argparse.ArgumentParser(
        prog="entrodrop",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_version(parser)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_part(verbs, "launch", names=("new",))
    prep = verbs.add_parser("prep", help="text to a corpus: build, pack, inspect, verify and more")
    if with_prep:
        part = prep.add_subparsers(dest="prep_verb", required=True, metavar="VERB")
        _add_part(part, "data_prep")
    _add_part(verbs, "launch", names=("plan", "preflight"))
    launching = verbs.add_parser("launch", help="train a recipe: " + ", ".join(LAUNCHERS))
    launching.add_argument("launcher", choices=list(LAUNCHERS))
    launching.add_argument("recipe")
    _add_part(verbs, "training")
    completion = verbs.add_parser(
        "completion",
        help="print a script that completes this command in a shell",
        description=_ABOUT_COMPLETION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    completion.add_argument("shell", choices=_SHELLS)
    return parser, list(verbs.choices)


def _add_part(verbs: Any, package: str, *, names: tuple[str, ...] | None = None) -> None:
    """By name: this module knows the other packages' verbs, and nothing else of them."""
    known = importlib.import_module(f"{package}.__main__").VERBS
    add_each_verb(verbs, package=f"{package}.commands", names=names or known)


def _print_completion(shell: str) -> int:
    try:
        import shtab
    except ImportError:
        raise ValueError(f"completion needs shtab: {sys.executable} -m pip install shtab") from None
    parser, _ = build_parser(with_prep=True)
    for action in _actions_of(parser):
        if not action.option_strings and not action.choices:  # recipes, runs, corpora
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, shell=shell))
    return 0


def _actions_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    actions = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for part in action.choices.values():
                actions += _actions_of(part)
        else:
            actions.append(action)
    return actions
