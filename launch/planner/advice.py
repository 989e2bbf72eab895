"""The cheapest change that makes a run fit, found by the same arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from launch.planner.forecast import Forecast, forecast
from training.config.layout import DoesNotDivideError
from training.config.recipe import Recipe

_OFFLOADS = ("ds_configs/zero3_offload_optimizer.json", "ds_configs/zero3_offload_all.json")


def advise(given: Forecast) -> tuple[list[str], Forecast] | None:
    """Overrides of the recipe that make it fit, and the forecast with them.

    In order of cost: activation checkpointing (a third more compute), a smaller micro-batch (more
    passes), sequence parallelism (all-to-all in each layer), the optimizer on the host (its step
    waits for PCIe and CPU), parameters there too (each pass waits).
    """
    for overrides, recipe in _changes(given):
        try:
            changed = forecast(recipe, given.machine, known=given)
        except DoesNotDivideError:
            continue
        if changed.fits:
            return overrides, changed
    return None


def more_gpus(given: Forecast) -> tuple[int, list[str]] | None:
    """The fewest GPUs, doubling up to 64 times as many, on which it fits, as it is or changed."""
    num_gpus = given.machine.num_gpus
    for factor in (2, 4, 8, 16, 32, 64):
        machine = replace(given.machine, num_gpus=num_gpus * factor)
        try:
            there = forecast(given.recipe, machine, known=given)
        except DoesNotDivideError:
            continue
        if there.fits:
            return machine.num_gpus, []
        if found := advise(there):
            return machine.num_gpus, found[0]
    return None


def _changes(given: Forecast) -> Iterator[tuple[list[str], Recipe]]:
    recipe, ranks = given.recipe, given.machine.ranks_per_node
    train, own_checkpointing = recipe.train, recipe.model.activation_checkpointing
    # sequence shards exchange heads in every layer: within a node
    own_sp = train.sequence_parallel_size
    sp_sizes = [own_sp, *(n for n in range(2 * own_sp, ranks + 1, own_sp) if ranks % n == 0)]
    is_bf16 = given.run.zero.number_bytes == 2  # as in the JSON files with offload
    offloads = _OFFLOADS if is_bf16 else ()
    ds_files = [recipe.deepspeed, *offloads]
    for ds_file, sp_size, micro_batch, checkpointing in product(
        ds_files,
        sp_sizes,
        _halvings(train.micro_batch_samples),
        sorted({own_checkpointing, True}),
    ):
        changed = replace(
            recipe,
            deepspeed=ds_file,
            model=replace(recipe.model, activation_checkpointing=checkpointing),
            train=replace(train, micro_batch_samples=micro_batch, sequence_parallel_size=sp_size),
        )
        wanted: list[tuple[str, object, object]] = [
            ("model.activation_checkpointing", own_checkpointing, checkpointing),
            ("train.micro_batch_samples", train.micro_batch_samples, micro_batch),
            ("train.sequence_parallel_size", own_sp, sp_size),
            ("deepspeed", recipe.deepspeed, ds_file),
        ]
        overrides = [f"{key}={_as_yaml(new)}" for key, old, new in wanted if old != new]
        if overrides:
            yield overrides, changed


def _as_yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _halvings(value: int) -> list[int]:
    """12 gives 12, 6, 3, 1."""
    return [value] if value == 1 else [value, *_halvings(value // 2)]
