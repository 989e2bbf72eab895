"""The longest sample that fits, with each of the levers that make room for activations."""

from __future__ import annotations

from dataclasses import replace

from launch.planner.advice import may_tile
from launch.planner.forecast import Forecast, forecast
from training.config.layout import DoesNotDivideError
from training.config.recipe import Recipe
from training.config.sections import Model

_UNIT_TOKENS = 1024
_MOST_TOKENS = 1 << 24
"""Where the search ends."""
_CHECKPOINTING, _OFFLOADING, _TILES = (
    "activation_checkpointing",
    "activation_offloading",
    "tiled_mlp",
)


def find_longest(given: Forecast) -> dict[str, dict[int, int | None]]:
    """Tokens by levers, then by ranks that share a sample; None where no sample fits."""
    train, ranks = given.recipe.train, given.machine.ranks_per_node
    own = train.sequence_parallel_size
    sp_sizes = sorted({own, *(n for n in (own, ranks) if given.machine.num_gpus % n == 0)})
    return {
        name: {sp_size: _longest(given, model, sp_size) for sp_size in sp_sizes}
        for name, model in _models(given)
    }


def longest_as_text(found: dict[str, dict[int, int | None]]) -> str:
    """A table: levers down, ranks that share a sample across."""
    sp_sizes = next(iter(found.values()))
    lines = [
        "Longest sample that fits, in tokens, one at a time, by train.sequence_parallel_size:",
        f"  {'':<64}" + "".join(f"{sp_size:>12}" for sp_size in sp_sizes),
    ]
    for name, by_size in found.items():
        cells = ("-" if tokens is None else f"{tokens:,}" for tokens in by_size.values())
        lines.append(f"  {name:<64}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def _models(given: Forecast) -> list[tuple[str, Model]]:
    """By the keys that are true; other keys of the recipe stay."""
    sets: list[tuple[str, ...]] = [(), (_CHECKPOINTING,), (_CHECKPOINTING, _OFFLOADING)]
    if may_tile(given.recipe, given.arch):
        sets = [keys + more for keys in sets for more in ((), (_TILES,))]
    return [
        (", ".join(keys) or "none of them", _with_keys(given.recipe.model, keys)) for keys in sets
    ]


def _with_keys(model: Model, keys: tuple[str, ...]) -> Model:
    return replace(
        model,
        activation_checkpointing=_CHECKPOINTING in keys,
        activation_offloading=_OFFLOADING in keys,
        tiled_mlp=_TILES in keys,
    )


def _longest(given: Forecast, model: Model, sp_size: int) -> int | None:
    """A multiple of 1,024 tokens a rank; None where not even one of them fits."""
    unit = _UNIT_TOKENS * sp_size

    def fits(units: int) -> bool:
        recipe = _with_samples(given, model, sp_size=sp_size, tokens=units * unit)
        try:
            return forecast(recipe, given.machine, known=given).fits
        except DoesNotDivideError:
            return False

    least, most = 0, 1
    while most * unit <= _MOST_TOKENS and fits(most):
        least, most = most, 2 * most
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if fits(middle) else (least, middle)
    return least * unit or None


def _with_samples(given: Forecast, model: Model, *, sp_size: int, tokens: int) -> Recipe:
    """Steps of one micro-batch, which its own may not divide into."""
    recipe, num_groups = given.recipe, given.machine.num_gpus // sp_size
    train = replace(
        recipe.train,
        global_batch_tokens=num_groups * tokens,
        micro_batch_samples=1,
        sequence_parallel_size=sp_size,
    )
    data = replace(recipe.data, sequence_tokens=tokens)
    return replace(recipe, model=model, train=train, data=data)
