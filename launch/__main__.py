"""The command `python -m launch`: plan and check before allocating GPUs."""

from __future__ import annotations

from common.exits import exit_code_of, heed_ctrl_c

if __name__ == "__main__":
    heed_ctrl_c()  # before the imports, which take longer

import argparse
import sys

from common.verbs import add_verbs
from training.config.arguments import parse_arguments

VERBS = ("plan", "preflight")


def main(argv: list[str] | None = None) -> int:
    """Run one verb; a user error is one message and exit code 2."""
    return exit_code_of(lambda: _run(argv))  # Ctrl-C may come while the verbs are loaded, too


def _run(argv: list[str] | None) -> int:
    options = parse_arguments(build_parser(), argv)
    return int(options.run(options))


def build_parser() -> argparse.ArgumentParser:
    """The command line; each verb's help says what it does."""
    parser = argparse.ArgumentParser(
        prog="python -m launch", description="Plan and check before allocating GPUs."
    )
    # the deepspeed launcher inserts it first; the environment has the same value
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    add_verbs(parser, package="launch.commands", names=VERBS)
    return parser


if __name__ == "__main__":
    code = main()
    if "torch" in sys.modules:
        from launch.commands.preflight import end_process

        end_process(code)
    sys.exit(code)
