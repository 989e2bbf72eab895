"""The command `python -m launch`: plan and check before allocating GPUs."""

from __future__ import annotations

from common.commands import command
from common.exits import exit_code_of, heed_ctrl_c

if __name__ == "__main__":
    heed_ctrl_c()  # before the imports, which take longer

import argparse
import os
import sys
from typing import NoReturn

from common.verbs import add_verbs
from training.config.arguments import parse_arguments

VERBS = ("new", "plan", "preflight")


def main(argv: list[str] | None = None) -> int:
    """Run one verb; a user error is one message and exit code 2."""
    # Ctrl-C may come while the verbs are loaded, too
    return exit_code_of(lambda: _run(argv))


def _run(argv: list[str] | None) -> int:
    options = parse_arguments(build_parser(), argv)
    return int(options.run(options))


def build_parser() -> argparse.ArgumentParser:
    """The command line; each verb's help says what it does."""
    parser = argparse.ArgumentParser(
        prog=command("launch"),
        description="Begin a project; plan and check before allocating GPUs.",
    )
    # the deepspeed launcher inserts it first; the environment has the same value
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    add_verbs(parser, package="launch.commands", names=VERBS)
    return parser


def end_process(code: int) -> NoReturn:
    """The last call of a command."""
    if "torch" in sys.modules:
        # checks that hang are still running in threads, and so is gloo
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    end_process(main())
