"""The verb `sweep`: every combination of some values of a recipe."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from training.config.arguments import add_recipe

SUMMARY = "run every combination of some values of a recipe, and compare them"
DESCRIPTION = """\
Run a recipe with every combination of the given values, each in its own folder in the recipe's
run_dir, and write a report over all of them. Mistakes are reported before the first run starts. The
same command again resumes: complete runs stay, stopped or killed ones resume from their newest
checkpoint.

  python -m training sweep RECIPE.yaml --vary dropout.max_rate=0.1,0.3,0.6 --seeds 1,2,3
  python -m training sweep RECIPE.yaml train.epochs=8 --vary regulariser=none,entrodrop --jobs 2
  python -m training sweep RECIPE.yaml --vary optimizer.lr=1e-5,3e-5 --dry-run
  python -m training sweep RECIPE.yaml --vary optimizer.lr=1e-5,3e-5 \\
      --slurm '--nodes=1 --ntasks-per-node=8 --gpus-per-node=8 --time=4:00:00'
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    add_recipe(verb)
    verb.add_argument(
        "--vary", action="append", default=[], metavar="a.b=1,2,3", help="a key and its values"
    )
    verb.add_argument("--seeds", metavar="1,2,3", help="the same as --vary seed=1,2,3")
    verb.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs in parallel (default: 1)"
    )
    verb.add_argument(
        "-n", type=int, metavar="N", help="processes of each run, as in launch/local.sh"
    )
    verb.add_argument("--slurm", metavar="OPTIONS", help="submit jobs, with these sbatch options")
    verb.add_argument(
        "--dry-run", action="store_true", help="check all, print what would run, stop"
    )


def run(options: argparse.Namespace) -> int:
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from training.sweeps.sweep import SweepOptions, run_sweep

    return run_sweep(
        SweepOptions(
            recipe=Path(options.recipe),
            overrides=options.overrides,
            varied=options.vary,
            seeds=options.seeds,
            num_jobs=options.jobs,
            num_processes=options.n,
            slurm=options.slurm,
            is_dry=options.dry_run,
        )
    )
