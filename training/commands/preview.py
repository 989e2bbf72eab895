"""The verb `preview`: which tokens of some samples a recipe would drop."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from training.config.arguments import add_recipe

SUMMARY = "show which tokens of some samples a recipe would drop"
DESCRIPTION = """\
Write, as JSON, which tokens of some samples drop in an epoch of the run, with scores of the corpus
as entropies. `python -m data_prep inspect --drops` shows them. No model is loaded.

  python -m training preview RECIPE.yaml --scores base --epoch 3 --samples 0-3,17 --out drops.json
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    add_recipe(verb)
    verb.add_argument("--scores", required=True, metavar="NAME", help="scores of the corpus")
    verb.add_argument(
        "--epoch", type=int, default=0, metavar="E", help="epoch, from 0 (default: 0)"
    )
    verb.add_argument(
        "--samples",
        type=number_list,
        default=[0],
        metavar="N",
        help="numbers, as in 0-3,17 (default: 0)",
    )
    verb.add_argument("--out", type=Path, required=True, metavar="FILE", help="output file")


def number_list(text: str) -> list[int]:
    """The numbers in a text such as `0-3,17`."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            numbers += range(int(first), int(last if dash else first) + 1)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form 0-3,17") from None
    return numbers


def run(options: argparse.Namespace) -> int:
    os.environ["DS_ACCELERATOR"] = "cpu"
    from training.config.load import load_recipe
    from training.run.preview import write_preview

    print(
        write_preview(
            load_recipe(options.recipe, options.overrides),
            epoch=options.epoch,
            samples=options.samples,
            scores=options.scores,
            out=options.out,
        )
    )
    return 0
