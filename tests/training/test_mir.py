"""Two passes for each micro-batch: losses and gradients are those of both together."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed import run_ranks
from tests.training.layouts import tiny_recipe
from tests.training.measured_layouts import make_engine, step_without_update
from training.config.recipe import Recipe
from training.ranks.dist import init_layout

WEIGHT = 0.4
MASKED = ["random_token_dropout", "token_replacement", "neftune"]


def recipe_of(names: list[str], *, sp_size: int, rows: int) -> Recipe:
    return tiny_recipe(
        regularisers=names,
        dropout__sample_rates="uniform",
        train__sequence_parallel_size=sp_size,
        train__micro_batch_samples=rows,
    )


def measured(sp_size: int, rows: int, arms: list[list[str]]) -> list[dict[str, Any]]:
    layout = init_layout(sp_size=sp_size)
    found = []
    for names in arms:
        recipe = recipe_of(names, sp_size=sp_size, rows=rows)
        engine, stream = make_engine(recipe, layout)
        found.append(step_without_update(recipe, engine, stream))
    return found


@pytest.fixture(scope="module")
def one_process() -> list[dict[str, Any]]:
    """In two micro-steps: clean alone, masked alone, both."""
    (found,) = run_ranks(measured, 1, 4, [["none"], MASKED, [*MASKED, "mir"]], world_size=1)
    return found


def test_both_passes_add_up(one_process):
    clean, masked, both = one_process
    assert both["row"]["loss"] == masked["row"]["loss"] != clean["row"]["loss"]
    expected = clean["row"]["loss"] + WEIGHT * masked["row"]["loss"]
    assert both["row"]["objective"] == pytest.approx(expected, rel=1e-6)
    assert both["dropped"] == masked["dropped"]
    for name, gradient in both["gradients"].items():
        sum_of_both = clean["gradients"][name] + WEIGHT * masked["gradients"][name]
        torch.testing.assert_close(gradient, sum_of_both, rtol=1e-5, atol=1e-6)


def test_another_layout_has_the_same(one_process):
    *_, expected = one_process
    for (found,) in run_ranks(measured, 2, 4, [[*MASKED, "mir"]], world_size=2):
        for key in ("loss", "objective", "grad_norm", "drop_rate_realised"):
            assert found["row"][key] == pytest.approx(expected["row"][key], rel=1e-5), key
        for name, gradient in expected["gradients"].items():
            difference = (found["gradients"][name] - gradient).norm() / gradient.norm()
            assert difference < 1e-5, name
