"""Changes that make a run fit, or faster where there is room, found by the same arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from launch.planner.architecture import Architecture
from launch.planner.forecast import Forecast, forecast
from training.config.layout import DoesNotDivideError
from training.config.recipe import Recipe
from training.config.sections import Model

_ENOUGH_TOKENS = 16_384
"""Of a GPU in a micro-batch: with as many, a layer's products are bound by arithmetic for long. An
assumption, not measured here."""
_WHOLE = "ds_configs/zero1.json"
_WHOLE_NUMBERS = 2_000_000_000
"""Weights up to which it is proposed. It adds gradients up whole and reduces them behind a step,
beside no computing: tens of milliseconds within a node. An assumption, not measured here."""
_SHARDED = ("ds_configs/zero3.json", "ds_configs/zero3_whole.json")
_OFFLOADS = ("ds_configs/zero3_offload_optimizer.json", "ds_configs/zero3_offload_all.json")

_LEVERS = ("activation_checkpointing", "activation_offloading", "tiled_mlp")
"""Keys of the model that change what is held, and no number."""
_WITHOUT_MLP = ("bloom", "opt")
"""Families whose layers have no module that is an MLP and nothing else."""


def advise(given: Forecast) -> tuple[list[str], Forecast] | None:
    """Overrides of the recipe that make it fit, and the forecast with them.

    In order of cost: activation checkpointing (a third more compute), a smaller micro-batch (more
    passes), inputs of layers on the host (copies over PCIe), MLPs in tiles (their products once
    more), sequence parallelism (all-to-all in each layer), weights and gradients sharded where they
    are whole, the optimizer on the host (its step waits for PCIe and CPU), parameters there too
    (each pass waits).
    """
    for overrides, recipe in _changes(given):
        try:
            changed = forecast(recipe, given.machine, known=given)
        except DoesNotDivideError:
            continue
        if changed.fits:
            return overrides, changed
    return None


def faster(given: Forecast) -> tuple[list[str], Forecast] | None:
    """Overrides that use the room of a recipe that fits, and the forecast with them.

    First no activation checkpointing, a quarter of the work; then the largest micro-batch, for
    fewer gatherings of weights and less of the host's time a token; then, for small models on one
    node, the optimizer's state alone sharded, for less of the host's time.
    """
    recipe, num_gpus = given.recipe, given.machine.num_gpus
    train, own = recipe.train, recipe.model
    own_checkpointing = own.activation_checkpointing
    length, dp_size = recipe.data.sequence_tokens, num_gpus // train.sequence_parallel_size
    most = min(
        train.global_batch_tokens // length // dp_size,
        max(train.micro_batch_samples, _ENOUGH_TOKENS * train.sequence_parallel_size // length),
    )
    is_small = given.arch.parameters <= _WHOLE_NUMBERS and num_gpus == given.machine.ranks_per_node
    wholes = [_WHOLE] if is_small and recipe.deepspeed in _SHARDED else []
    for checkpointing, micro_batch, ds_file in product(
        sorted({False, own_checkpointing}),
        range(most, train.micro_batch_samples - 1, -1),
        [*wholes, recipe.deepspeed],
    ):
        overrides, changed = _changed(
            recipe,
            model=replace(
                own,
                activation_checkpointing=checkpointing,
                activation_offloading=checkpointing and own.activation_offloading,
            ),
            micro_batch=micro_batch,
            sp_size=train.sequence_parallel_size,
            ds_file=ds_file,
        )
        if not overrides:
            return None
        try:
            found = forecast(changed, given.machine, known=given)
        except DoesNotDivideError:
            continue
        if found.fits:
            return overrides, found
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
    train = recipe.train
    # sequence shards exchange heads in every layer: within a node
    own_sp = train.sequence_parallel_size
    sp_sizes = [own_sp, *(n for n in range(2 * own_sp, ranks + 1, own_sp) if ranks % n == 0)]
    is_bf16 = given.run.zero.number_bytes == 2  # as in the JSON files with offload
    offloads = _OFFLOADS if is_bf16 else ()
    sharded = () if given.run.zero.shards_weights or not is_bf16 else _SHARDED[:1]
    ds_files = [recipe.deepspeed, *sharded, *offloads]
    for ds_file, sp_size, (micro_batch, model) in product(
        ds_files, sp_sizes, _levers(recipe, tiles=may_tile(recipe, given.arch))
    ):
        overrides, changed = _changed(
            recipe, model=model, micro_batch=micro_batch, sp_size=sp_size, ds_file=ds_file
        )
        if overrides:
            yield overrides, changed


def _levers(recipe: Recipe, *, tiles: bool) -> Iterator[tuple[int, Model]]:
    """Micro-batches and models whose activations take ever less of a GPU."""
    model, smallest = recipe.model, recipe.train.micro_batch_samples
    for smallest, checkpointing in product(
        _halvings(recipe.train.micro_batch_samples),
        sorted({model.activation_checkpointing, True}),
    ):
        yield smallest, replace(model, activation_checkpointing=checkpointing)
    model = replace(model, activation_checkpointing=True, activation_offloading=True)
    yield smallest, model
    if tiles:
        yield smallest, replace(model, tiled_mlp=True)


def may_tile(recipe: Recipe, arch: Architecture) -> bool:
    """Whether a recipe allows `model.tiled_mlp`: no dropout draws for whole rows in an MLP."""
    adapter_dropout = recipe.adapter.dropout if recipe.adapter else 0.0
    return can_tile(arch) and not adapter_dropout and "mlp_dropout" not in recipe.regularisers


def can_tile(arch: Architecture) -> bool:
    """Whether `training/model/tiled_mlp.py` finds an MLP in each layer."""
    return arch.family not in _WITHOUT_MLP and not any(layer.mlp for layer in arch.stack)


def _changed(
    recipe: Recipe, *, model: Model, micro_batch: int, sp_size: int, ds_file: str
) -> tuple[list[str], Recipe]:
    """The overrides that this takes, and the recipe with them."""
    own, train = recipe.model, recipe.train
    wanted: list[tuple[str, object, object]] = [
        *((f"model.{key}", getattr(own, key), getattr(model, key)) for key in _LEVERS),
        ("train.micro_batch_samples", train.micro_batch_samples, micro_batch),
        ("train.sequence_parallel_size", train.sequence_parallel_size, sp_size),
        ("deepspeed", recipe.deepspeed, ds_file),
    ]
    overrides = [f"{key}={_as_yaml(new)}" for key, old, new in wanted if old != new]
    changed = replace(
        recipe,
        deepspeed=ds_file,
        model=model,
        train=replace(train, micro_batch_samples=micro_batch, sequence_parallel_size=sp_size),
    )
    return overrides, changed


def _as_yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _halvings(value: int) -> list[int]:
    """12 gives 12, 6, 3, 1."""
    return [value] if value == 1 else [value, *_halvings(value // 2)]
