"""A forecast as a table to read, and as plain data for JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from launch.planner.advice import advise, faster, more_gpus
from launch.planner.forecast import GIB, Forecast
from launch.planner.notes import notes_of
from launch.planner.rank import PHASES

_LABELS = {
    "parameters": "parameters",
    "second_partition": "weights of a node (hpZ)",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "buckets": "bucket of gradients",
    "gathered": "gathered weights",
    "activations": "activations",
    "head": "head: chunk, gradients",
    "whole_gradients": "gradients in flight",
    "method": "batch and method",
}


def as_text(given: Forecast, *, name: str) -> str:
    """The whole plan; ends with the verdict."""
    lines = [*_heading(given, name), "", *_memory(given), "", *_host(given), "", *_time(given), ""]
    if notes := [f"note: {note}" for note in notes_of(given)]:
        lines += [*notes, ""]
    return "\n".join([*lines, *_verdict(given)])


def as_data(given: Forecast, *, name: str) -> dict[str, Any]:
    """The same as plain data; sizes in bytes."""
    found = faster(given) if given.fits else advise(given)
    changed = found[1] if found else None
    return {
        "recipe": name,
        "machine": asdict(given.machine),
        "model": _model(given),
        "gpu_bytes": {phase: moment._asdict() for phase, moment in given.moments.items()},
        "outside_tensors_bytes": given.outside_bytes,
        "peak_phase": given.peak_phase,
        "peak_bytes": given.peak_bytes,
        "usable_bytes": given.usable_bytes,
        "host_bytes": asdict(given.host) | {"peak": given.host.peak_bytes},
        "time": asdict(given.duration) | {"days": given.duration.days},
        "fits": given.fits,
        "notes": notes_of(given),
        "advice": {"overrides": found[0], "peak_bytes": changed.peak_bytes}
        if found and changed
        else None,
    }


def _model(given: Forecast) -> dict[str, Any]:
    arch = given.arch
    counted = ("layers", "parameters", "active_parameters")
    sizes = {key: value for key, value in asdict(arch).items() if key != "stack"}
    return sizes | {key: getattr(arch, key) for key in counted}


def _heading(given: Forecast, name: str) -> list[str]:
    arch, recipe, machine = given.arch, given.recipe, given.machine
    run, train = given.run, recipe.train
    number = "bf16" if run.zero.number_bytes == 2 else "fp32"
    return [
        f"{name}: {_large(arch.parameters)} parameters in {number}"
        + (
            f", {_large(arch.active_parameters)} of them for each token"
            if arch.active_parameters < arch.parameters
            else ""
        )
        + f" (sizes from {arch.source})"
        + (f"; {arch.trained:,} of an adapter are trained" if arch.adapter else ""),
        f"GPUs: {machine.num_gpus} of {machine.gpu_gib:g} GiB, {machine.ranks_per_node} per node; "
        f"{recipe.deepspeed}",
        f"samples of {recipe.data.sequence_tokens:,} tokens, "
        f"{train.micro_batch_samples} at a time; "
        f"sequence parallelism {train.sequence_parallel_size}; "
        f"activation checkpointing {'on' if run.checkpointing else 'off'}"
        + (", kept on the host" if run.activations.offloads else "")
        + ("; MLPs in tiles" if run.activations.is_tiled else "")
        + ("; Liger's kernels" if run.activations.fused else ""),
    ]


def _memory(given: Forecast) -> list[str]:
    phases = PHASES
    lines = ["GiB of a GPU, at the peak of" + "".join(f"{phase:>11}" for phase in phases)]
    for field, label in _LABELS.items():
        values = [getattr(given.moments[phase], field) for phase in phases]
        if any(values):
            lines.append(f"  {label:<26}" + "".join(_cell(value) for value in values))
    totals = [given.moments[phase].total for phase in phases]
    lines.append(f"  {'all tensors':<26}" + "".join(_cell(value) for value in totals))
    acts = given.run.activations
    of_layers = [acts.layer(layer) for layer in given.arch.stack]
    without = (sum(of_layers) + acts.ends) / GIB
    with_it = (len(of_layers) * acts.kept_input + max(of_layers) + acts.ends) / GIB
    return [
        *lines,
        f"  activations in all: {without:.2f} without checkpointing, {with_it:.2f} with it",
    ]


def _cell(num_bytes: int) -> str:
    return f"{num_bytes / GIB:>11.2f}" if num_bytes else f"{'-':>11}"


def _host(given: Forecast) -> list[str]:
    host = given.host
    parts = {
        "processes": host.processes,
        "offloaded optimizer": host.optimizer,
        "offloaded parameters": host.parameters,
        "offloaded activations": host.activations,
        "checkpoint being written": host.checkpoint_copy,
        "model files while loading (first node)": host.model_files,
    }
    shown = ", ".join(f"{name} {value / GIB:.1f}" for name, value in parts.items() if value)
    return [
        f"GiB of a node's host: {host.peak_bytes / GIB:.1f} at most ({shown}); "
        f"pinned {host.pinned / GIB:.1f}",
        f"GiB on disk: {host.checkpoint_on_disk / GIB:.1f} per checkpoint, up to "
        f"{host.checkpoints_kept} of them; {host.export_on_disk / GIB:.1f} for the export; "
        f"{host.entropies_on_disk / GIB:.2f} for the cache of entropies" + _predictions(given),
    ]


def _predictions(given: Forecast) -> str:
    """What a stored teacher takes; nothing of one that is not there."""
    corpus = given.corpus
    if corpus is None or not corpus.top_k:
        return ""
    size = f"{corpus.prediction_bytes / GIB:.2f}"
    return f"; {size} are there of the teacher, {corpus.top_k} tokens of each position"


def _time(given: Forecast) -> list[str]:
    time, machine = given.duration, given.machine
    rate = time.step_tokens / time.step_seconds
    mfu = machine.hfu * time.passes.model / time.passes.hardware
    lines = [
        f"{time.step_tokens:,} tokens per step in {time.micro_steps} micro-steps; "
        f"{_seconds(time.step_seconds)} per step, {_rate(rate)} tokens per second at "
        f"{machine.hfu:g} of {machine.gpu_tflops:g} TFLOPS per GPU (HFU; MFU {mfu:.2g})"
    ]
    if time.total_steps is None or time.days is None:
        recipe = given.recipe
        of_replay = f" and of {recipe.replay.corpus}" if recipe.replay else ""
        lines.append(
            f"{time.epochs:g} epochs; steps and days need the pack of {recipe.data.corpus}"
            f"{of_replay}, or --corpus-tokens"
        )
    else:
        corpus = f" of {time.corpus_tokens:,} tokens" if time.corpus_tokens else ""
        lines.append(
            f"{time.epochs:g} epochs{corpus}: {time.total_steps:,} steps, {_span(time.days)} "
            "without evaluations and saves"
        )
    return lines


def _large(number: int) -> str:
    """0.596 billion, 1.12 million, 139,648."""
    if number >= 1e8:
        return f"{number / 1e9:.3f} billion"
    return f"{number / 1e6:.3g} million" if number >= 1e6 else f"{number:,}"


def _rate(number: float) -> str:
    return f"{number / 1e6:,.0f} million" if number >= 1e7 else f"{number:,.0f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.01 else "less than 0.01 s"


def _span(days: float) -> str:
    """In the largest unit of which it has one; days in hours, too."""
    if days >= 1:
        return f"{days:.3g} days ({24 * days:.3g} hours)"
    for per_day, unit in ((24, "hours"), (24 * 60, "minutes")):
        if days * per_day >= 1:
            return f"{days * per_day:.3g} {unit}"
    seconds = days * 86_400
    return f"{seconds:.0f} seconds" if seconds >= 1 else "less than a second"


def _verdict(given: Forecast) -> list[str]:
    machine = given.machine
    peak, usable = given.peak_bytes / GIB, given.usable_bytes / GIB
    does = "FITS" if given.fits else "DOES NOT FIT"
    lines = [
        f"{does}: {peak:.1f} GiB at the peak ({given.peak_phase}), {given.outside_bytes / GIB:.0f} "
        f"of them for CUDA and NCCL; {usable:.1f} of {machine.gpu_gib:g} usable with a margin of "
        f"{machine.margin_frac:.0%}"
    ]
    if not given.host_fits:
        lines.append(
            f"The host of a node needs {given.host.peak_bytes / GIB:.1f} GiB and has "
            f"{machine.host_gib:g}."
        )
    if given.fits:
        if found := faster(given):
            overrides, changed = found
            lines += [
                f"Faster, and it fits ({changed.peak_bytes / GIB:.1f} GiB):",
                f"  {' '.join(overrides)}",
            ]
        return lines
    if found := advise(given):
        overrides, changed = found
        return [
            *lines,
            f"The cheapest change that fits ({changed.peak_bytes / GIB:.1f} GiB; host "
            f"{changed.host.peak_bytes / GIB:.0f} GiB per node):",
            f"  {' '.join(overrides)}",
        ]
    if more := more_gpus(given):
        num_gpus, overrides = more
        with_changes = f" with {' '.join(overrides)}" if overrides else ""
        nothing = f"No change fits at --gpus {machine.num_gpus}"
        return [*lines, f"{nothing}; --gpus {num_gpus} does{with_changes}."]
    return [*lines, "No change fits, not even on 64 times as many GPUs."]
