"""The verb `preflight`: its arguments, and what each process does; torch is imported late."""

from __future__ import annotations

import argparse
import json
import os
import textwrap
import time
from typing import TYPE_CHECKING

from launch.preflight.catalogue import CHECKS, read_skipped
from training.config.arguments import add_recipe

if TYPE_CHECKING:
    from launch.preflight.run import Result

SUMMARY = "check hosts, network, corpus and numerics on the processes that will train"
DESCRIPTION = """\
Check in about a minute, on all processes of a job, what would otherwise go wrong hours later or
unnoticed. Start it like the training itself: in every process, by the same launcher. Rank 0 prints
a table of pass, WARN and FAIL, with ranks and hosts and what to do. docs/preflight.md explains each
check.

"""
_EXAMPLES = """
examples:
  python -m launch preflight training/recipes/quickstart.yaml train.sequence_parallel_size=1
  torchrun --standalone --nproc-per-node=8 -m launch preflight training/recipes/qwen3_8b.yaml
  srun --ntasks-per-node=8 python -m launch preflight RECIPE --min-gbps 200 --json
  mpirun -n 16 --hostfile hosts.txt python -m launch preflight RECIPE --skip pairs,contents

exit code: 0 nothing failed (warnings may be), 1 a check failed, 2 usage error"""


def _checks() -> str:
    """Every check with what it protects against."""
    return "\n".join(
        textwrap.fill(
            sentence,
            width=96,
            initial_indent=f"  {name:<14}",
            subsequent_indent=" " * 16,
        )
        for name, sentence in CHECKS.items()
    )


DESCRIPTION += f"checks:\n{_checks()}\n{_EXAMPLES}"


def add_arguments(verb: argparse.ArgumentParser) -> None:
    add_recipe(verb)
    verb.add_argument(
        "--skip", default="", metavar="NAME,...", help="skip these checks, as in disk,pairs"
    )
    verb.add_argument(
        "--deep", action="store_true", help="read every byte of the corpus, however long it takes"
    )
    verb.add_argument(
        "--min-gbps",
        type=float,
        metavar="G",
        help="Gbit/s that any two hosts must exchange, each way, with all their processes; on one "
        "host, what all-reduce must reach",
    )
    verb.add_argument(
        "--limit",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="longest time of one check before the ranks that hang are named (default %(default)g)",
    )
    verb.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    skipped = read_skipped(options.skip)
    for name in ("min_gbps", "limit"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"--{name.replace('_', '-')} {value:g} is not above 0")
    _refuse_timeout_without_number()
    _quiet_libraries()
    # imports here: --help and usage errors answer before torch is loaded
    from launch.preflight.meeting import CommonMistake, Request, meet

    try:
        context, exchange = meet(
            Request(options.recipe, options.overrides, deep=options.deep, min_gbps=options.min_gbps)
        )
    except CommonMistake:
        if os.environ.get("RANK", "0") == "0":
            raise
        return 2
    from launch.preflight.disk import clean_up
    from launch.preflight.run import run_checks
    from launch.preflight.table import as_data, as_lines, heading, summary, verdict_of

    began = time.monotonic()
    shows = context.layout.is_main and not options.json

    def show(result: Result) -> None:
        if shows:
            print(as_lines(result), flush=True)

    if shows:
        print(heading(context.setting, name=options.recipe), flush=True)
    results = run_checks(context, exchange, skipped=skipped, seconds=options.limit, show=show)
    seconds = time.monotonic() - began
    if context.layout.is_main:
        clean_up(context)
        if options.json:
            data = as_data(context.setting, results, name=options.recipe, seconds=seconds)
            print(json.dumps(data, indent=2), flush=True)
        else:
            print(summary(results, seconds=seconds), flush=True)
    exchange.leave()
    return 1 if verdict_of(results) == "fail" else 0


def _refuse_timeout_without_number() -> None:
    value = os.environ.get("DEEPSPEED_TIMEOUT", "10")
    if not value.isdecimal():
        raise ValueError(f"DEEPSPEED_TIMEOUT={value} is not a whole number of minutes")


def _quiet_libraries() -> None:
    """As launch/env.sh does, for processes started without it."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
