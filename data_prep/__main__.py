"""The command `python -m data_prep`, with one verb per operation on a corpus."""

from __future__ import annotations

from common.commands import command, with_commands
from common.exits import exit_code_of, heed_ctrl_c

if __name__ == "__main__":
    heed_ctrl_c()  # before the imports, which take longer

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from common.verbs import add_verbs, refuse_argument
from data_prep.mpi import abort_mpi, mpi_rank

_DESCRIPTION = """\
Turn raw text into a corpus that training reads: token ids in shards, with a manifest that
accounts for every document and every token.

  python -m data_prep build   --input docs.jsonl --tokenizer Qwen/Qwen3-0.6B --out data/docs
  python -m data_prep dedup   data/docs --near
  python -m data_prep pack    data/docs --seq-len 2048
  python -m data_prep inspect data/docs --seq-len 2048 --sample 0
  python -m data_prep verify  data/docs --deep
"""

VERBS = (
    "train-tokenizer",
    "build",
    "dedup",
    "decontaminate",
    "pack",
    "score",
    "stats",
    "inspect",
    "verify",
    "import-megatron",
    "export-megatron",
    "mirror",
)

_RESUMED = ("build", "score", "mirror")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Exit codes: 0 done, 1 a check failed, 2 a user error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name may hold bytes that are not UTF-8; printing it must not end the command.
        sys.stdout.reconfigure(errors="backslashreplace")
    # Else pydantic looks through all installed packages for plugins, longer than it takes to load
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # Ctrl-C may come while the verbs are loaded, too
    return exit_code_of(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    parser = build_parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        refuse_argument(unknown[0], parser=parser, verb=options.verb)
    shares_work = _shares_work(options)

    def run() -> int:
        # score runs a model on all ranks, through torch
        if mpi_rank() > 0 and options.verb != "score":
            if shares_work:
                from data_prep.executor import serve_as_mpi_worker

                serve_as_mpi_worker()
            return 0
        return int(options.run(options))

    again = "; the same command goes on from what is finished" if options.verb in _RESUMED else ""
    code = exit_code_of(run, interrupted=f"stopped; no partial output was published{again}")
    if shares_work and code not in (0, 1):
        abort_mpi(code)
    return code


def _shares_work(options: argparse.Namespace) -> bool:
    """Whether MPI ranks share the work; all other commands run on the first rank alone."""
    if options.verb == "dedup":
        return bool(options.near)
    return options.verb in ("build", "import-megatron", "decontaminate")


def build_parser() -> argparse.ArgumentParser:
    """The command line; each verb's help says what it does."""
    parser = argparse.ArgumentParser(
        prog=command("data_prep"),
        description=with_commands(_DESCRIPTION),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_verbs(parser, package="data_prep.commands", names=VERBS)
    return parser


def end_process(exit_code: int) -> NoReturn:
    """The last call of a command."""
    if "torch" in sys.modules:
        # threads of a process group may abort the interpreter during a slow shutdown
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)


if __name__ == "__main__":
    end_process(main())
