"""The command `python -m launch`: what one asks before GPUs are taken."""

from __future__ import annotations

import argparse
import json
import math
import sys

from launch.planner.forecast import Machine, forecast
from launch.planner.table import as_data, as_text
from launch.preflight import command as preflight
from training.config.load import load_recipe

_PLAN = """Say what a run will take before it starts: memory of a GPU by phase, memory of a node's
host, bytes on disk, steps and days; and when it does not fit, the cheapest change with which it
does. Needs no GPU, no network and no torch. docs/planning.md explains each line."""

_PLAN_EXAMPLES = """examples:
  python -m launch plan training/recipes/qwen3_8b.yaml --gpus 64 --gpu-gib 80
  python -m launch plan training/recipes/qwen3_8b.yaml --gpus 8 --gpu-gib 80 --host-gib 1024 \\
      train.micro_batch_samples=4
  python -m launch plan training/recipes/qwen3_8b_32k.yaml --gpus 8 --gpu-gib 141 --json

exit code: 0 it fits, 1 it does not, 2 usage error"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a user's mistake is one message and exit code 2."""
    parser = _parser()
    # argparse takes no more positional arguments once an option has come after the first ones
    given, later = parser.parse_known_args(arguments)
    if unknown := [argument for argument in later if argument.startswith("-")]:
        parser.error(f"unknown option {unknown[0]}; see --help of the command")
    given.overrides += later
    try:
        return int(given.run(given))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch", description="Plan and check before allocating GPUs."
    )
    # the deepspeed launcher puts it in front; the environment says the same
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_plan(commands)
    _add_preflight(commands)
    return parser


def _add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    plan = commands.add_parser(
        "plan",
        help="memory, time and disk of a run, and what to change when it does not fit",
        description=_PLAN,
        epilog=_PLAN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    machine = Machine(num_gpus=1, gpu_gib=1)
    plan.add_argument("recipe", metavar="RECIPE", help="YAML file of the run")
    plan.add_argument(
        "overrides", nargs="*", metavar="a.b=c", help="change keys, as in train.epochs=3"
    )
    plan.add_argument("--gpus", type=_count, required=True, help="GPUs of all nodes together")
    plan.add_argument("--gpu-gib", type=_above_0, required=True, help="memory of a GPU")
    plan.add_argument(
        "--gpus-per-node",
        type=_count,
        default=machine.gpus_per_node,
        help="how many share a host (default %(default)s)",
    )
    plan.add_argument("--host-gib", type=_above_0, help="memory of a host; it then has to fit too")
    plan.add_argument(
        "--mfu",
        type=_share,
        default=machine.mfu,
        help="share of the peak that all matrix products reach, recomputed ones too: ask a run of "
        "yours (default %(default)s)",
    )
    plan.add_argument(
        "--gpu-tflops",
        type=_above_0,
        default=machine.gpu_tflops,
        help="dense bf16 peak of a GPU (default %(default)s, an H100 SXM; A100: 312)",
    )
    plan.add_argument(
        "--margin",
        type=_share,
        default=machine.margin_frac,
        help="share of a GPU that must stay free (default %(default)s)",
    )
    plan.add_argument(
        "--corpus-tokens", type=_count, help="tokens of an epoch, where the pack is not here yet"
    )
    plan.add_argument("--json", action="store_true", help="print it for machines, in bytes")
    plan.set_defaults(run=_plan)


def _add_preflight(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "preflight",
        help=preflight.SUMMARY,
        description=preflight.DESCRIPTION,
        epilog=preflight.epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file of the run")
    parser.add_argument(
        "overrides", nargs="*", metavar="a.b=c", help="change keys, as in train.epochs=3"
    )
    preflight.add_arguments(parser)
    parser.set_defaults(run=preflight.preflight)


def _plan(given: argparse.Namespace) -> int:
    result = forecast(
        load_recipe(given.recipe, given.overrides),
        Machine(
            num_gpus=given.gpus,
            gpu_gib=given.gpu_gib,
            gpus_per_node=given.gpus_per_node,
            host_gib=given.host_gib,
            gpu_tflops=given.gpu_tflops,
            mfu=given.mfu,
            margin_frac=given.margin,
            corpus_tokens=given.corpus_tokens,
        ),
    )
    if given.json:
        print(json.dumps(as_data(result, name=given.recipe), indent=2))
    else:
        print(as_text(result, name=given.recipe))
    return 0 if result.fits else 1


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
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


if __name__ == "__main__":
    code = main()
    if "torch" in sys.modules:
        preflight.end_process(code)
    sys.exit(code)
