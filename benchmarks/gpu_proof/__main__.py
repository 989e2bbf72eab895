"""The command `python -m benchmarks.gpu_proof`: what a GPU shows of this project, in one run.

    python -m benchmarks.gpu_proof --out proof
    python -m benchmarks.gpu_proof --out proof --device cpu --small

Needs one GPU, the extra [kernels] and no internet. Each step runs in a process of its own with a
limit of seconds; what has not begun after nine minutes fails. A step is one row or several. A row
is in proof.jsonl before the next begins, and in proof.md, which is printed, when its step ends. One
whose package is missing says so and is skipped. Exits with 1 when a row fails. With --small the
shapes are tiny: on a CPU this tries the script, and shows nothing of a GPU.

It shows no NCCL, no overlap of communication and no Ulysses, which need two GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.gpu_proof.rows import write_row
from benchmarks.gpu_proof.steps import STEPS, run_step
from benchmarks.machine import describe_machine
from tests.distributed import run_ranks

ALL_SECONDS = 540


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps, print a table, and return 0 when no row has failed."""
    options = parse_options(arguments)
    if options.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # of kernels without a GPU, before the first process
    options.out.mkdir(parents=True, exist_ok=True)
    rows_file, table = options.out / "proof.jsonl", options.out / "proof.md"
    for file in (rows_file, table):
        file.write_text("", encoding="utf-8")
    versions = {name: version(name) for name in ("torch", "deepspeed", "transformers")}
    head = ", ".join(
        [describe_machine(), *(f"{name} {number}" for name, number in versions.items())]
    )
    write_row(rows_file, device=options.device, small=options.small, head=head, versions=versions)
    _say(table, f"{head}\n\n| step | row | result | seconds | figures |\n|---|---|---|---|---|")
    failed, ends = False, time.monotonic() + ALL_SECONDS
    for name in options.only or STEPS:
        num_before = len(_read(rows_file))
        _run(name, options, rows_file, seconds_left=ends - time.monotonic())
        for row in _read(rows_file)[num_before:]:
            failed |= row["result"] == "FAIL"
            figures = ", ".join(f"{key} {value:.4g}" for key, value in row["figures"].items())
            shown = [name, row["row"], row["result"], f"{row['seconds']:.1f}"]
            reason = row["reason"] if row["result"] == "skipped" else ""
            _say(table, f"| {' | '.join(shown)} | {figures or reason} |")
            if row["result"] == "FAIL":
                print(row["reason"], file=sys.stderr, flush=True)
    return int(failed)


def _run(name: str, options: argparse.Namespace, rows_file: Path, *, seconds_left: float) -> None:
    """Run a step; when its process does not end well, that is a row too."""
    began, (_, limit_seconds) = time.monotonic(), STEPS[name]
    try:
        assert seconds_left > 0, f"{name} did not begin: {ALL_SECONDS} seconds are over"
        run_ranks(
            run_step,
            name,
            options.device,
            options.small,
            rows_file.absolute(),
            world_size=1,
            timeout_seconds=min(limit_seconds, seconds_left),
            gpus=options.device == "cuda",
        )
    except AssertionError as error:
        seconds = time.monotonic() - began
        failure = {"result": "FAIL", "seconds": seconds, "figures": {}, "reason": str(error)}
        write_row(rows_file, step=name, row=f"within {limit_seconds} s", **failure)


def _read(rows_file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in rows_file.read_text(encoding="utf-8").splitlines()]


def _say(table: Path, text: str) -> None:
    print(text, flush=True)
    with table.open("a", encoding="utf-8") as file:
        file.write(f"{text}\n")


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for proof.jsonl and proof.md"
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="(cuda)")
    parser.add_argument("--small", action="store_true", help="tiny shapes")
    parser.add_argument("--only", nargs="+", choices=STEPS, help="these steps (all)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
