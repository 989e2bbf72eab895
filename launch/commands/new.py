"""The verb `new`: a project folder of one's own."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "write a project folder: a recipe, the corpus commands, how to launch it"
DESCRIPTION = """\
Write a folder for texts, corpus and runs of one project: recipe.yaml, prepare.sh, which turns
texts/ into a corpus, and README.md, which says how to plan, check and launch the run.

  python -m launch new notes
  python -m launch new notes --model path/to/model --sequence-tokens 4096
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("name", type=Path, metavar="NAME", help="folder to create")
    verb.add_argument(
        "--model",
        default="Qwen/Qwen3-0.6B",
        help="pretrained model: a folder, or a name of the hub (default: %(default)s)",
    )
    verb.add_argument(
        "--sequence-tokens",
        type=int,
        default=2048,
        metavar="S",
        help="tokens of a sample (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    from launch.new_project import write_project

    for path in write_project(
        options.name, model=options.model, sequence_tokens=options.sequence_tokens
    ):
        print(path)
    return 0
