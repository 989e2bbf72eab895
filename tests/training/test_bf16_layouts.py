"""In bf16: no layout is further from fp32 than one process is, but for one rounding."""

from __future__ import annotations

from typing import Any

import deepspeed
import pytest
import torch
from torch import Tensor

from tests.distributed import run_ranks
from tests.grids import WHOLE
from tests.training.layouts import tiny_recipe
from tests.training.measured_layouts import LAYOUTS, MODELS, make_engine, step_without_update
from training.model.engine import Engine
from training.ranks.dist import init_layout

_ONE_ROUNDING = 2**-8
"""Relative, of a number to bf16: ranks reduce gradients in it."""
CASES = [
    (stage, model, layout)
    for stage in ("zero3", "zero1")
    for model in MODELS
    for layout in LAYOUTS
    if layout != "one_process" and (WHOLE or (stage, model, layout) == ("zero3", "tied", "sp_2"))
]


def step(
    stage: str, sp_size: int, micro_batch_samples: int, model: dict[str, Any]
) -> dict[str, Any]:
    """Loss, gradients in fp32 and weights of a step in bf16."""
    layout = init_layout(sp_size=sp_size)
    recipe = tiny_recipe(
        deepspeed=f"ds_configs/{stage}.json",
        regulariser="none",
        train__micro_batch_samples=micro_batch_samples,
        train__sequence_parallel_size=sp_size,
        **model,
    )
    engine, stream = make_engine(recipe, layout, torch.bfloat16)
    weights = whole_weights(engine)
    return step_without_update(recipe, engine, stream) | {"weights": weights}


def steps_of_one_process(
    stage: str, model: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same, and in fp32 with the same weights."""
    found = step(stage, 1, 8, model)
    recipe = tiny_recipe(regulariser="none", train__micro_batch_samples=8, **model)
    engine, stream = make_engine(recipe, init_layout(sp_size=1))
    engine.put({name: weight.float() for name, weight in found["weights"].items()})
    return found, step_without_update(recipe, engine, stream)


def whole_weights(engine: Engine) -> dict[str, Tensor]:
    weights: Any = engine.trained
    with deepspeed.zero.GatheredParameters(list(weights.values())):
        return {name: weight.detach().clone() for name, weight in weights.items()}


@pytest.fixture(scope="module")
def of_one_process() -> dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]]:
    return {
        (stage, model): run_ranks(steps_of_one_process, stage, MODELS[model], world_size=1)[0]
        for stage, model in {(stage, model) for stage, model, _ in CASES}
    }


@pytest.mark.parametrize(("stage", "model", "layout"), CASES)
def test_a_layout_adds_no_more_than_one_rounding(of_one_process, stage, model, layout):
    world_size, *shape = LAYOUTS[layout]
    one, exact = of_one_process[stage, model]
    for rank in run_ranks(step, stage, *shape, MODELS[model], world_size=world_size):
        assert all(torch.equal(rank["weights"][n], w) for n, w in one["weights"].items())
        assert rank["row"]["loss"] == pytest.approx(exact["row"]["loss"], rel=_ONE_ROUNDING)
        for name, expected in exact["gradients"].items():
            error, of_one = (
                float((each["gradients"][name].float() - expected).norm() / expected.norm())
                for each in (rank, one)
            )
            assert error < of_one + _ONE_ROUNDING, name
