"""Check: losses and entropies of a tiny model of this family against plain transformers."""

from __future__ import annotations

from collections.abc import Mapping

from launch.preflight.finding import Finding
from launch.preflight.model import model_config
from launch.preflight.setting import Context, Setting
from training.model.gate import find_other_numbers


def measure(context: Context) -> None:
    """On every rank, as hosts may have other versions.

    Raises:
        ValueError: as `python -m training train` would.
    """
    recipe = context.recipe
    mistake = find_other_numbers(
        recipe.model,
        model_config(recipe),
        sequence_tokens=recipe.data.sequence_tokens,
        sp_size=context.setting.sp_size,
        adapter=recipe.adapter,
    )
    if mistake is not None:
        raise ValueError(mistake)


def judge(setting: Setting, _: Mapping[int, None]) -> list[Finding]:
    """Refusals have already been raised."""
    return [
        Finding(
            "pass",
            "packed documents have the losses and entropies of plain transformers, document by "
            "document (tiny model)",
        )
    ]
