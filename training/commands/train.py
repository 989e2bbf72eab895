"""The verb `train`: run a recipe, or resume it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from training.config.arguments import add_recipe

SUMMARY = "run a recipe, or resume it"
DESCRIPTION = """\
Run a recipe. Started again, it resumes from the newest complete checkpoint. Under torchrun or
deepspeed --module every process runs this command.

  python -m training train RECIPE.yaml optimizer.lr=1e-4 seed=7
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    add_recipe(verb)
    verb.add_argument(
        "--accept-changes",
        nargs="+",
        default=[],
        metavar="FIELD",
        help="resume a run although these differ from its checkpoint, as in optimizer.lr",
    )
    verb.add_argument(
        "--rank-logs",
        action="store_true",
        help="every rank but 0 prints to RUN/logs/rank-<rank>.log instead of the screen",
    )


def run(options: argparse.Namespace) -> int:
    from training.config.load import load_recipe
    from training.config.renamed import new_name
    from training.ranks.rank_logs import print_to_file

    recipe = load_recipe(options.recipe, options.overrides)
    if options.rank_logs:
        print_to_file(Path(recipe.run_dir), rank=int(os.environ.get("RANK", "0")))
    from training.run.run import train

    # a checkpoint stores the recipe's names as recipe.optimizer.lr
    accepted = [new_name(field) for field in options.accept_changes]
    accepted += [f"recipe.{field}" for field in accepted]
    train(recipe, accepted=accepted)
    return 0
