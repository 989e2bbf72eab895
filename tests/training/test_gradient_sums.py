"""Gradients add up over micro-steps unrounded, and are the same whatever ZeRO-3 keeps whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from tests.distributed import ranks_folder, run_ranks
from tests.training.layouts import tiny_recipe
from tests.training.measured_layouts import make_engine
from training.config.shipped import find_ds_config
from training.model.inputs import ModelInputs
from training.ranks.dist import Layout, init_layout

# a threshold that holds nothing of a tiny model whole, as zero3.json holds of a large one
PARTITIONED = {"stage3_param_persistence_threshold": 0}


def gradients_of_equal_micro_steps(layout: Layout, num_micro_steps: int, **zero: Any) -> Any:
    """(Loss, gradients by name) of the same micro-batch again and again."""
    config = json.loads(find_ds_config("zero3").read_text(encoding="utf-8"))
    config["zero_optimization"] |= zero
    path = ranks_folder() / f"{layout.rank}.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    recipe = tiny_recipe(
        deepspeed=str(path),
        train__micro_batch_samples=1,
        train__global_batch_tokens=num_micro_steps * layout.dp_size * 32,
    )
    engine, stream = make_engine(recipe, layout)
    batch = stream.step(0)[0]
    for _ in range(num_micro_steps):
        loss_sum, _ = engine.weighted_loss(ModelInputs.of(batch), batch.is_target_BS.float())
        engine.backward_and_step(loss_sum, divisor=64.0, lr=0.0)
    return float(loss_sum), engine.captured


def on_two_ranks() -> dict[str, Any]:
    layout = init_layout(sp_size=1)
    return {
        "1": gradients_of_equal_micro_steps(layout, 1, **PARTITIONED),
        "4": gradients_of_equal_micro_steps(layout, 4, **PARTITIONED),
        # as zero3_whole.json; torch's linear stays replaced within a process, so this is the last
        "whole": gradients_of_equal_micro_steps(layout, 1),
    }


@pytest.fixture(scope="module")
def measured() -> list[dict[str, Any]]:
    return run_ranks(on_two_ranks, world_size=2)


def test_gradients_of_bf16_add_up_over_micro_steps_without_rounding(measured):
    for rank in measured:
        (_, of_one), (_, of_four) = rank["1"], rank["4"]
        for name, gradient in of_one.items():
            assert gradient.norm() > 0.0
            assert torch.equal(of_four[name], 4.0 * gradient), name


def test_what_stays_whole_changes_no_number(measured):
    for rank in measured:
        (loss, gradients), (loss_of_whole, of_whole) = rank["1"], rank["whole"]
        assert loss == loss_of_whole
        for name, gradient in gradients.items():
            assert torch.equal(of_whole[name], gradient), name
