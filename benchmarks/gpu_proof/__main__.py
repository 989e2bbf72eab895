"""The command `python -m benchmarks.gpu_proof`: what a GPU shows of this project, in one run.

    python -m benchmarks.gpu_proof --out proof
    python -m benchmarks.gpu_proof --out proof --device cpu --small

Needs one GPU, the extra [kernels] and no internet. Each step runs in a process of its own with a
limit of seconds, and its row is in proof.jsonl before the next begins; what has not begun after
nine minutes fails. Exits with 1 when a step fails. With --small the shapes are tiny: on a CPU this
tries the script, and shows nothing of a GPU.

It shows no NCCL, no overlap of communication and no Ulysses, which need two GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.gpu_proof import checks, speed
from benchmarks.machine import describe_machine
from tests.distributed import run_ranks

STEPS: dict[str, tuple[Callable[[str, bool], dict[str, float]], int]] = {
    "ceilings": (speed.ceilings, 40),
    "kernels": (checks.kernels, 60),
    "kernels_beyond_int32": (checks.kernels_beyond_int32, 40),
    "attention": (checks.attention, 40),
    "documents": (checks.documents, 30),
    "fused_layers": (checks.fused_layers, 60),
    "head": (checks.head, 40),
    "skipped_step": (checks.skipped_step, 50),
    "head_milliseconds": (speed.head_milliseconds, 40),
    "steps": (speed.steps, 140),
}
"""Each with its limit of seconds."""
ALL_SECONDS = 540


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps, print a table, and return 0 when all have passed."""
    options = parse_options(arguments)
    on_gpu = options.device == "cuda"
    if not on_gpu:
        os.environ["TRITON_INTERPRET"] = "1"  # of kernels without a GPU, before the first process
    options.out.mkdir(parents=True, exist_ok=True)
    rows_file = options.out / "proof.jsonl"
    rows_file.write_text("", encoding="utf-8")
    versions = {name: version(name) for name in ("torch", "deepspeed", "transformers")}
    print(describe_machine(), *(f"{name} {number}" for name, number in versions.items()), sep=", ")
    print("\n| step | result | seconds | figures |\n|---|---|---|---|")
    failed, ends = False, time.monotonic() + ALL_SECONDS
    for name in options.only or STEPS:
        row = _run(name, options, seconds_left=ends - time.monotonic())
        failed |= row["result"] != "pass"
        with rows_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row | {"device": options.device, "versions": versions}) + "\n")
        figures = ", ".join(f"{key} {value:.4g}" for key, value in row["figures"].items())
        print(f"| {name} | {row['result']} | {row['seconds']:.1f} | {figures} |", flush=True)
        if row["error"]:
            print(row["error"], file=sys.stderr, flush=True)
    return int(failed)


def _run(name: str, options: argparse.Namespace, *, seconds_left: float) -> dict[str, Any]:
    work, limit_seconds = STEPS[name]
    began, error = time.monotonic(), ""
    figures: dict[str, float] = {}
    try:
        assert seconds_left > 0, f"{name} did not begin: {ALL_SECONDS} seconds are over"
        (figures,) = run_ranks(
            work,
            options.device,
            options.small,
            world_size=1,
            timeout_seconds=min(limit_seconds, seconds_left),
            gpus=options.device == "cuda",
        )
    except AssertionError as caught:
        error = str(caught)
    return {
        "step": name,
        "result": "FAIL" if error else "pass",
        "seconds": time.monotonic() - began,
        "figures": figures,
        "error": error,
    }


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for proof.jsonl")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="(cuda)")
    parser.add_argument("--small", action="store_true", help="tiny shapes")
    parser.add_argument("--only", nargs="+", choices=STEPS, help="these steps (all)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
