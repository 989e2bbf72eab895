"""The command `python -m training`: one verb for each thing to do with a run."""

from __future__ import annotations

from common.commands import command, with_commands
from common.exits import exit_code_of, heed_ctrl_c

if __name__ == "__main__":
    heed_ctrl_c()  # before the imports, which take longer

import argparse
import os
import sys
from typing import NoReturn

from common.verbs import add_verbs
from training.config.arguments import parse_arguments
from training.ranks.launcher_env import set_rank_variables, whole_number

_EPILOG = """\
examples:
  python -m training train training/recipes/quickstart.yaml train.sequence_parallel_size=1
  torchrun --standalone --nproc-per-node=2 -m training train RECIPE.yaml train.epochs=3
  python -m training evaluate runs/quickstart
  python -m training export runs/quickstart
  python -m training report runs/quickstart runs/baseline --out runs/compared
  python -m training sweep RECIPE.yaml --vary regulariser=none,entrodrop --seeds 1,2,3
"""

VERBS = (
    *("train", "evaluate", "export", "interpolate", "report", "watch", "sweep", "preview"),
    *("generate", "push", "add-tokens"),
)


def main(argv: list[str] | None = None) -> int:
    """Run one verb; a user error is one message and exit code 2."""
    # Ctrl-C may come while the verbs are loaded, too
    return exit_code_of(lambda: _run(argv))


def _run(argv: list[str] | None) -> int:
    options = parse_arguments(build_parser(), argv)
    has_ranks = options.verb in ("train", "evaluate", "interpolate")
    # the rank is not known before, so every process says what is wrong with it
    if has_ranks and (code := exit_code_of(_set_ranks)):
        return code
    # most errors are the same on all ranks; with one log file per rank, each prints its own
    has_log = getattr(options, "rank_logs", False)
    rank = 0 if has_log or not has_ranks else whole_number("RANK")
    return exit_code_of(lambda: int(options.run(options)), rank=rank)


def _set_ranks() -> int:
    set_rank_variables()
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command line; each verb's help says what it does."""
    parser = argparse.ArgumentParser(
        prog=command("training"),
        description="Train a causal LM on little data without overfitting, and inspect the result.",
        epilog=with_commands(_EPILOG),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # the deepspeed launcher inserts it first; the environment has the same value
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    add_verbs(parser, package="training.commands", names=VERBS)
    return parser


def end_process(exit_code: int) -> NoReturn:
    """The last call of a command."""
    if "RANK" in os.environ:
        # gloo's threads release tensors after the last collective has returned; one that does so
        # during interpreter shutdown aborts the process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)


if __name__ == "__main__":
    end_process(main())
