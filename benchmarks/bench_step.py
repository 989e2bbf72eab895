"""Whole optimizer steps: the cost of the method, and ours compared with the Hugging Face Trainer.

    python -m benchmarks.bench_step --ranks 2 --rounds 9
    python -m benchmarks.bench_step --ranks 2 --sp 2 --skip-trainer
    python -m benchmarks.bench_step --modes off input_online --activation-checkpointing

Prints four tables:
- the seconds of a step of each mode. One engine runs them all, in an order that rotates from round
  to round; a ratio is that of two steps of the same round on the same samples, so that a machine
  that slows down slows both. CPU seconds are of rank 0 and exclude other processes and waiting;
- where the milliseconds of a step go, in separate steps that the timers slow a little;
- the bytes of each collective of a step, at two lengths of sequence: what is ours must not grow
  with them, but for one value a row where ranks share a sequence;
- tokens a second compared with the Trainer, on the same model, data, DeepSpeed JSON and batches:
  both engines live in one process and step in turn, for the same reason. Our attention computes
  nothing between documents, theirs masks it: with --one-document neither has an advantage.

Weights are random and in fp32, on the CPU over gloo: the figures say how parts compare, not how
fast a cluster is.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.hf_trainer import trainer_steps
from benchmarks.machine import describe_machine
from benchmarks.step_meters import PHASES, CollectiveCounter, Took, phase_clock
from benchmarks.step_tables import (
    Beside,
    Measured,
    print_collectives,
    print_head,
    print_phases,
    print_ratios,
    print_trainer,
)
from benchmarks.step_workload import MODES, Bench, make_recipe, make_stream
from tests.distributed import run_ranks
from training.ranks.dist import Layout


def measure(options: argparse.Namespace, tokens: int, num_rounds: int) -> Measured:
    """On one rank: timed rounds, profiled steps, and a step of counted collectives."""
    bench = Bench(options, tokens)
    rows, rounds = timed_rounds(bench, num_rounds)
    has_phases = num_rounds and not options.skip_phases
    return Measured(
        machine=describe_machine(),
        num_parameters=bench.engine.num_parameters,
        first_loss=rows["off"][0]["loss"],
        rounds=rounds,
        drop_rate={mode: rows[mode][-1]["drop_rate_realised"] for mode in rows},
        phases=phases_of_modes(bench, options.phase_steps) if has_phases else {},
        collectives={} if options.skip_collectives else collectives_of_modes(bench),
    )


def timed_rounds(
    bench: Bench, num_rounds: int
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, list[Took]]]:
    """By mode, the metrics of every round, and the seconds of all but the first one."""
    modes = list(bench.recipes)
    rows: dict[str, list[dict[str, Any]]] = {mode: [] for mode in modes}
    rounds: dict[str, list[Took]] = {mode: [] for mode in modes}
    for number in range(num_rounds + 1):
        turn = number % len(modes)
        for mode in modes[turn:] + modes[:turn]:
            took, row = bench.step(mode, number)
            rows[mode].append(row)
            if number > 0:  # in the first round DeepSpeed learns the order of the modules
                rounds[mode].append(took)
    return rows, rounds


def phases_of_modes(bench: Bench, num_steps: int) -> dict[str, dict[str, float]]:
    """Mean seconds of a step in each phase."""
    phases = {}
    for mode in bench.regularisers:
        with phase_clock(bench.engine) as clock:
            timed_step = clock.timed(bench.step, "rest")
            for number in range(num_steps):
                timed_step(mode, number)
        phases[mode] = {name: clock.seconds[name] / num_steps for name in PHASES}
    return phases


def collectives_of_modes(bench: Bench) -> dict[str, Counter[tuple[str, str, str]]]:
    collectives = {}
    for mode in bench.recipes:
        with CollectiveCounter() as counter:
            bench.step(mode, 0)
        collectives[mode] = counter.totals
    return collectives


def measure_beside_trainer(options: argparse.Namespace) -> Beside:
    """On one rank: a step of the Trainer, each of ours on the same samples, and so on."""
    bench = Bench(options, options.sequence_tokens)
    rounds: dict[str, list[Took]] = {f"ours, {mode}": [] for mode in bench.recipes}
    losses = []

    def ours(number: int) -> None:
        for mode in bench.recipes:
            took, row = bench.step(mode, number)
            rounds[f"ours, {mode}"].append(took)
            losses.append(row["loss"])

    rounds["Trainer"], their_first_loss = trainer_steps(
        bench.recipes["off"],
        bench.stream,
        options.trainer_rounds + 1,
        layout=bench.engine.layout,
        between=ours,
    )
    warm = {name: taken[1:] for name, taken in rounds.items()}
    return Beside(warm, losses[0], their_first_loss)


def main() -> None:
    """Measure what was asked for and print a table of each."""
    options = parse_options()
    sys.stderr.write(f"{', '.join(options.modes)}: {options.rounds} rounds after a warm-up\n")
    found = on_ranks(options, measure, options, options.sequence_tokens, options.rounds)
    print_head(options, found)
    print_ratios(options, found)
    if found.phases:
        print_phases(found)
    if found.collectives:
        shorter = options.sequence_tokens // 2
        print_collectives(options, found, on_ranks(options, measure, options, shorter, 0))
    if options.skip_trainer or options.sp > 1:
        return
    kept = [mode for mode in ("off", "input_reference") if mode in options.modes]
    beside = argparse.Namespace(**(vars(options) | {"modes": kept}))
    print_trainer(options, on_ranks(options, measure_beside_trainer, beside))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def number(flag: str, default: int, meaning: str) -> None:
        parser.add_argument(flag, type=int, default=default, help=f"{meaning} ({default})")

    cores = os.cpu_count() or 1
    number("--ranks", 2, "processes, on this machine")
    number("--sp", 1, "ranks that share a sequence; above 1 without the Trainer")
    parser.add_argument("--threads", type=int, help="of each process (cores / ranks)")
    number("--layers", 6, "of the model, in the shape of Qwen3")
    number("--hidden", 256, "channels")
    number("--vocab", 8192, "tokens of the vocabulary")
    number("--sequence-tokens", 512, "tokens of a sample")
    number("--samples", 4, "samples in a step, over all ranks and micro-steps")
    number("--micro-samples", 1, "samples in a forward pass of a rank")
    parser.add_argument(
        "--one-document", action="store_true", help="in a sample, in place of several random ones"
    )
    parser.add_argument("--activation-checkpointing", action="store_true", help="in all engines")
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, default=list(MODES), help="off runs in any case (all)"
    )
    number("--rounds", 9, "timed steps of each mode")
    number("--phase-steps", 3, "profiled steps of each mode")
    number("--trainer-rounds", 9, "timed steps of the comparison with the Trainer")
    for part in ("phases", "collectives", "trainer"):
        parser.add_argument(f"--skip-{part}", action="store_true", help="skip that table")
    options = parser.parse_args()
    options.deepspeed = "ds_configs/zero3_fp32.json"
    options.threads = options.threads or max(1, cores // options.ranks)
    options.modes = ["off", *(mode for mode in options.modes if mode != "off")]
    if options.ranks % options.sp or options.sequence_tokens % (2 * options.sp):
        parser.error("--ranks and half of --sequence-tokens must be multiples of --sp")
    layout = Layout(0, options.ranks, options.sp, torch.device("cpu"))
    try:
        make_stream(options, make_recipe(options, options.sequence_tokens, "off"), layout)
    except ValueError as error:
        parser.error(str(error))
    return options


def on_ranks(options: argparse.Namespace, function: Callable[..., Any], *args: Any) -> Any:
    """What rank 0 returns."""
    return run_ranks(function, *args, world_size=options.ranks, timeout_seconds=3600)[0]


if __name__ == "__main__":
    main()
