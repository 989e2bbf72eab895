"""The verb `plan`: what a run will need, and what to change when it does not fit."""

from __future__ import annotations

import argparse
import json
import math

from launch.planner.machine import Machine
from training.config.arguments import add_recipe

SUMMARY = "memory, time and disk of a run, and what to change when it does not fit"
DESCRIPTION = """\
Forecast what a run will need before it starts: GPU memory by phase, host memory of a node, bytes on
disk, steps and days; and when it does not fit, the cheapest change that makes it fit. Needs no GPU,
no network and no torch. docs/planning.md explains each line.

examples:
  python -m launch plan training/recipes/qwen3_8b.yaml --gpus 64 --gpu-gib 80
  python -m launch plan training/recipes/qwen3_8b.yaml --gpus 8 --gpu-gib 80 --host-gib 1024 \\
      train.micro_batch_samples=4
  python -m launch plan training/recipes/qwen3_8b_32k.yaml --gpus 8 --gpu-gib 141 --json
  python -m launch plan training/recipes/llama3.1_8b.yaml --gpus 8 --gpu-gib 80 --longest

exit code: 0 it fits (with --longest: some sample does), 1 it does not, 2 usage error
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    machine = Machine(num_gpus=1, gpu_gib=1)
    add_recipe(verb)
    verb.add_argument("--gpus", type=_count, required=True, help="GPUs of all nodes together")
    verb.add_argument("--gpu-gib", type=_above_0, required=True, help="memory of a GPU")
    verb.add_argument(
        "--gpus-per-node",
        type=_count,
        default=machine.gpus_per_node,
        help="how many share a host (default %(default)s)",
    )
    verb.add_argument(
        "--host-gib", type=_above_0, help="memory of a host; it then has to suffice too"
    )
    verb.add_argument(
        "--hfu",
        type=_share,
        default=machine.hfu,
        help="share of the peak that all matrix products reach, recomputed ones too: hfu in the "
        "metrics of a run of yours (default %(default)s)",
    )
    verb.add_argument(
        "--gpu-tflops",
        type=_above_0,
        default=machine.gpu_tflops,
        help="dense bf16 peak of a GPU (default %(default)s, an H100 SXM; A100: 312)",
    )
    verb.add_argument(
        "--margin",
        type=_share,
        default=machine.margin_frac,
        help="share of a GPU that must stay free (default %(default)s)",
    )
    verb.add_argument(
        "--corpus-tokens", type=_count, help="tokens of an epoch, if the pack does not exist yet"
    )
    printed = verb.add_mutually_exclusive_group()
    printed.add_argument("--json", action="store_true", help="print JSON, in bytes")
    printed.add_argument(
        "--longest",
        action="store_true",
        help="print the longest sample that fits, with and without each lever, in place of a plan",
    )


def run(options: argparse.Namespace) -> int:
    # imports here: --help and usage errors answer before the recipe's types are made
    from launch.planner.forecast import forecast
    from launch.planner.longest import find_longest, longest_as_text
    from launch.planner.table import as_data, as_text
    from training.config.load import load_recipe

    result = forecast(
        load_recipe(options.recipe, options.overrides),
        Machine(
            num_gpus=options.gpus,
            gpu_gib=options.gpu_gib,
            gpus_per_node=options.gpus_per_node,
            host_gib=options.host_gib,
            gpu_tflops=options.gpu_tflops,
            hfu=options.hfu,
            margin_frac=options.margin,
            corpus_tokens=options.corpus_tokens,
        ),
    )
    if options.longest:
        found = find_longest(result)
        print(longest_as_text(found))
        return 0 if any(any(by_size.values()) for by_size in found.values()) else 1
    if options.json:
        print(json.dumps(as_data(result, name=options.recipe), indent=2))
    else:
        print(as_text(result, name=options.recipe))
    return 0 if result.fits else 1


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer above 0")
    return int(text)


def _above_0(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1, as in 0.4")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value
