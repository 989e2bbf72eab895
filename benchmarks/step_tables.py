"""What the benchmark of a step found, and the tables that it prints."""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version

from benchmarks.step_meters import PHASES, Took, median_took


@dataclass
class Measured:
    """What rank 0 measured, by mode."""

    machine: str
    num_parameters: int
    first_loss: float
    """Of the very first step, which is without dropout."""
    rounds: dict[str, list[Took]]
    drop_rate: dict[str, float]
    phases: dict[str, dict[str, float]]
    """Mean seconds of a step in each phase."""
    collectives: dict[str, Counter[tuple[str, str, str]]]
    """By (caller, collective, "calls" or "bytes"), of one step."""


@dataclass
class Beside:
    """Steps of ours and of the Trainer in turn, on rank 0."""

    rounds: dict[str, list[Took]]
    our_first_loss: float
    their_first_loss: float


def print_head(options: argparse.Namespace, found: Measured) -> None:
    others = ", ".join(f"{name} {version(name)}" for name in ("deepspeed", "transformers"))
    print(f"{found.machine}, {others}")
    print(
        f"{options.ranks} processes over gloo, {options.sp} to a sequence; "
        f"{options.layers} layers, D={options.hidden} V={options.vocab}, "
        f"{found.num_parameters / 1e6:.1f} M parameters; {options.samples} samples of "
        f"{options.sequence_tokens} tokens a step, {options.micro_samples} in a forward pass, "
        f"{'one document' if options.one_document else 'several documents'} in a sample"
        f"{', activation checkpointing' if options.activation_checkpointing else ''}"
    )


def print_ratios(options: argparse.Namespace, found: Measured) -> None:
    print(f"\nMedians of {options.rounds} rounds; the ratio is to `off` of the same round.\n")
    print("| mode | seconds a step | ratio to off | least and most | by CPU seconds | drop rate |")
    print("|---|---|---|---|---|---|")
    for mode, rounds in found.rounds.items():
        print(
            f"| {mode} | {median_took(rounds).wall:.3f} "
            f"| {ratio_cells(rounds, found.rounds['off'])} | {found.drop_rate[mode]:.3f} |"
        )


def ratio_cells(these: list[Took], those: list[Took]) -> str:
    """Median, least and most of the ratios of pairs, and the median of those of CPU seconds."""
    pairs = list(zip(these, those, strict=True))
    wall = [a.wall / b.wall for a, b in pairs]
    cpu = statistics.median(a.cpu / b.cpu for a, b in pairs)
    return f"{statistics.median(wall):.3f} | {min(wall):.3f} {max(wall):.3f} | {cpu:.3f}"


def print_phases(found: Measured) -> None:
    print("\nMilliseconds of a step, by phase:")
    print("; ".join(f"{name}: {meaning}" for name, meaning in PHASES.items() if meaning) + ".\n")
    print("| mode | " + " | ".join(PHASES) + " | sum |")
    print("|---" * (len(PHASES) + 2) + "|")
    for mode, phases in found.phases.items():
        cells = [*phases.values(), sum(phases.values())]
        print(f"| {mode} | " + " | ".join(f"{1000 * cell:.1f}" for cell in cells) + " |")


def print_collectives(options: argparse.Namespace, longer: Measured, shorter: Measured) -> None:
    tokens = options.sequence_tokens
    print(
        f"\nCollectives of a step on one rank, samples of {tokens // 2} and {tokens} tokens. Bytes "
        "are the longer of what\ngoes in and what comes out. Ours has two to six all-reduces more, "
        "of 80 KiB at most, when tokens tie at the threshold.\n"
    )
    print(f"| mode | caller | collective | calls | bytes at {tokens // 2} | bytes at {tokens} |")
    print("|---|---|---|---|---|---|")
    for mode, totals in longer.collectives.items():
        for who, name, what in sorted(totals, reverse=True):
            if what == "bytes":
                at_both = (m.collectives[mode][who, name, what] for m in (shorter, longer))
                cells = " | ".join(f"{number:,}" for number in at_both)
                print(f"| {mode} | {who} | {name} | {totals[who, name, 'calls']} | {cells} |")


def print_trainer(options: argparse.Namespace, found: Beside) -> None:
    tokens = options.samples * options.sequence_tokens
    print(
        f"\nCompared with the Hugging Face Trainer, in turn in one process, medians of "
        f"{options.trainer_rounds} rounds. It decays norms too,\nwhich ours does not; the rest is "
        "the same. Loss of the first step, of the same weights: ours\n"
        f"{found.our_first_loss:.6f}, its {found.their_first_loss:.6f}.\n"
    )
    print("| | tokens a second | speed to the Trainer's | least and most | by CPU seconds |")
    print("|---|---|---|---|---|")
    theirs = found.rounds["Trainer"]
    for name, taken in found.rounds.items():
        speed = tokens / median_took(taken).wall
        print(f"| {name} | {speed:,.0f} | {ratio_cells(theirs, taken)} |")
