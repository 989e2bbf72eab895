"""Host time of a micro-step: our `train_step` compared with plain transformers on the same tree.

    python -m benchmarks.bench_host
    python -m benchmarks.bench_host --layers 36 --true-layer-numbers 192_900_000
    python -m benchmarks.bench_host --modes off input_reference input_cache loss_lagged

A GPU waits for its host when launching a micro-step takes longer than computing it, which happens
with small models on fast GPUs. So the widths here are tiny, and what is left is the host's work:
Python, DeepSpeed's bookkeeping, the overhead of operators.

For each DeepSpeed JSON, without activation checkpointing and with it, plain transformers
(forward and backward of the same tree in the same attention, clipping, torch's AdamW) and each mode
of ours step in turn on the same samples, in one process of one thread:
- milliseconds are processor time of a micro-step, the least of all rounds and the median;
- the ratio is of the least ones, since other work on the machine can only add to them;
- operators are calls that torch dispatches;
- the shares are of a profiled step, in functions of DeepSpeed and in functions of `training/`, each
  with the built-ins that these call. A profiler makes Python code slower than the rest.

Sizes in the JSON are scaled to the tiny layers, so that what ZeRO-3 keeps whole, fetches ahead and
releases is as at the true width. There are no collectives on one process.
"""

from __future__ import annotations

import argparse
import copy
import cProfile
import json
import pstats
import statistics
from collections.abc import Callable
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PretrainedConfig

from benchmarks.machine import describe_machine
from benchmarks.step_meters import Host, Operators, Took
from benchmarks.step_workload import MODES, Bench
from tests.distributed import ranks_folder, run_ranks
from training.config.shipped import find_ds_config
from training.data.stream import MicroBatch
from training.model.attention import ATTENTION_NAME, register_attention
from training.model.inputs import ModelInputs

PLAIN = "plain transformers"
_JSONS = ("ds_configs/zero1.json", "ds_configs/zero3.json", "ds_configs/zero3_whole.json")
_LINEAR = functional.linear  # which ZeRO-3 replaces for the whole process


class PlainTransformers:
    """The loop that one would write: the same tree and attention, nothing else of ours."""

    def __init__(self, config: PretrainedConfig, *, activation_checkpointing: bool) -> None:
        register_attention()
        self._model: Any = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), dtype=config.dtype, attn_implementation=ATTENTION_NAME
        ).train()
        if activation_checkpointing:
            self._model.gradient_checkpointing_enable({"use_reentrant": False})
        self._adam = torch.optim.AdamW(self._model.parameters(), lr=1e-4, fused=True)

    def step(self, batches: list[MicroBatch]) -> None:
        for batch in batches:
            inputs = ModelInputs.of(batch)
            out = self._model(
                input_ids=inputs.ids_BS,
                position_ids=inputs.position_ids_BS,
                labels=inputs.ids_BS,
                document_layout=inputs.documents,
                use_cache=False,
            )
            (out.loss / len(batches)).backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._adam.step()
        self._adam.zero_grad()


def measure(options: argparse.Namespace) -> dict[str, Host]:
    """What each way takes, all on one rank and in turn."""
    scaled = argparse.Namespace(**vars(options) | {"deepspeed": str(_scaled_json(options))})
    bench = Bench(scaled, options.sequence_tokens)
    plain = PlainTransformers(
        bench.model_config, activation_checkpointing=options.activation_checkpointing
    )
    with_own_linear = patch.object(functional, "linear", _LINEAR)
    steps: dict[str, Callable[[int], Any]] = {
        PLAIN: lambda n: with_own_linear(plain.step)(bench.stream.step(n))
    }
    for mode in options.modes:
        steps[mode] = lambda n, mode=mode: bench.step(mode, n)
    found = {name: Host() for name in steps}
    warm_up = 3  # in the first steps ZeRO-3 learns the order of the modules
    for number in range(warm_up + options.rounds):
        for name, step in steps.items():
            began = Took.now()
            step(number)
            ms = Took.now().since(began).cpu * 1e3 / bench.stream.num_micro_steps
            if number >= warm_up:
                found[name].ms.append(ms)
    for name, step in steps.items():
        step(0)
        with Operators() as operators:
            step(1)
        found[name].num_operators = operators.calls / bench.stream.num_micro_steps
        found[name].deepspeed_frac, found[name].ours_frac = _shares(step)
    return found


def _scaled_json(options: argparse.Namespace) -> Path:
    """With sizes in numbers of weights multiplied by tiny layer / true layer."""
    config = json.loads(find_ds_config(options.deepspeed).read_text(encoding="utf-8"))
    zero = config["zero_optimization"]
    # Qwen3: q and o, k and v of half the heads, three of the MLP, two norms and those of q and k
    tiny_numbers = (2 + 1 + 9) * options.hidden**2 + 2 * options.hidden + options.hidden // 2
    scale = tiny_numbers / options.true_layer_numbers
    sizes = {"reduce_bucket_size": 5e8}
    if zero["stage"] == 3:
        sizes["stage3_prefetch_bucket_size"] = 5e7
        sizes["stage3_max_reuse_distance"] = sizes["stage3_max_live_parameters"] = 1e9
        zero.setdefault("stage3_param_persistence_threshold", options.hidden)  # norms stay whole
    for name, default in sizes.items():
        zero[name] = int(zero.get(name, default) * scale)
    path = ranks_folder() / "scaled.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def _shares(step: Callable[[int], Any]) -> tuple[float, float]:
    """Of a step's time: in functions of DeepSpeed, and of `training/`."""
    with cProfile.Profile() as profile:
        step(2)
    stats: Any = pstats.Stats(profile)
    seconds = {"deepspeed": 0.0, "training": 0.0}
    for (file, _, _), (_, _, own, _, callers) in stats.stats.items():
        if file == "~":  # a built-in counts for whoever calls it
            for (caller, _, _), (_, _, for_caller, _) in callers.items():
                seconds[_package(caller)] = seconds.get(_package(caller), 0.0) + for_caller
        else:
            seconds[_package(file)] = seconds.get(_package(file), 0.0) + own
    total = sum(seconds.values())
    return seconds["deepspeed"] / total, seconds["training"] / total


def _package(file: str) -> str:
    parts = Path(file).parts
    return next((name for name in ("deepspeed", "training") if name in parts), "")


def print_rows(options: argparse.Namespace, found: dict[str, Host]) -> None:
    checkpointing = "on" if options.activation_checkpointing else "off"
    for name, host in found.items():
        print(
            f"| {Path(options.deepspeed).stem} | {checkpointing} | {name} | {min(host.ms):.1f} "
            f"| {statistics.median(host.ms):.1f} "
            f"| {min(host.ms) / min(found[PLAIN].ms):.2f} | {host.num_operators:,.0f} "
            f"| {host.deepspeed_frac:.0%} | {host.ours_frac:.0%} |",
            flush=True,
        )


def main() -> None:
    """Print what was measured on, and rows for each JSON without and with checkpointing."""
    options = parse_options()
    others = ", ".join(f"{name} {version(name)}" for name in ("deepspeed", "transformers"))
    print(f"{describe_machine()}, {others}")
    print(
        f"{options.layers} layers of the shape of Qwen3, D={options.hidden} V={options.vocab}; "
        f"{options.samples} micro-steps of {options.sequence_tokens} tokens, one process of one "
        f"thread, {options.rounds} rounds; milliseconds of processor time a micro-step\n"
    )
    columns = ["JSON", "checkpointing", "way", "least ms", "median ms", "ratio", "operators"]
    print("|", " | ".join([*columns, "DeepSpeed's share", "ours"]), "|")
    print("|" + "---|" * (len(columns) + 2))
    for deepspeed, checkpointing in product(options.deepspeed, options.checkpointing):
        chosen = argparse.Namespace(
            **vars(options)
            | {"deepspeed": deepspeed, "activation_checkpointing": checkpointing == "on"}
        )
        (found,) = run_ranks(measure, chosen, world_size=1, timeout_seconds=3600)
        print_rows(chosen, found)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def number(flag: str, default: int, meaning: str) -> None:
        parser.add_argument(flag, type=int, default=default, help=f"{meaning} ({default:,})")

    number("--layers", 28, "of the model")
    number("--hidden", 32, "channels")
    number("--vocab", 128, "tokens of the vocabulary")
    number("--sequence-tokens", 32, "tokens of a sample, one document")
    number("--samples", 4, "micro-steps of a step")
    number("--rounds", 10, "timed steps of each way")
    number("--true-layer-numbers", 15_730_000, "weights of a layer at the true width")
    parser.add_argument("--deepspeed", nargs="+", default=_JSONS, help="JSONs, each in turn")
    parser.add_argument(
        "--checkpointing", nargs="+", choices=["off", "on"], default=["off", "on"], help="(both)"
    )
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, default=["off", "input_reference"], help="of ours"
    )
    options = parser.parse_args()
    options.micro_samples = options.sp = options.ranks = options.threads = 1
    options.one_document = True
    return options


if __name__ == "__main__":
    main()
