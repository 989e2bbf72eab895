"""Gradients add up over micro-steps unrounded, and are the same whatever ZeRO-3 keeps whole."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import patch

import pytest
import torch
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

from tests.distributed import ranks_folder, run_ranks
from tests.training.layouts import tiny_recipe
from tests.training.measured_layouts import make_engine
from training.config.shipped import find_ds_config
from training.model.inputs import ModelInputs
from training.ranks.dist import Layout, init_layout

# a threshold that holds nothing of a tiny model whole, as zero3.json holds of a large one
PARTITIONED = {"stage3_param_persistence_threshold": 0}


def bf16_config(layout: Layout, **zero: Any) -> str:
    """Path of zero3.json with other settings of ZeRO."""
    config = json.loads(find_ds_config("zero3").read_text(encoding="utf-8"))
    config["zero_optimization"] |= zero
    path = ranks_folder() / f"{layout.rank}.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return str(path)


def gradients_of_equal_micro_steps(layout: Layout, num_micro_steps: int, **zero: Any) -> Any:
    """(Loss, gradients by name) of the same micro-batch again and again."""
    recipe = tiny_recipe(
        deepspeed=bf16_config(layout, **zero),
        train__micro_batch_samples=1,
        train__global_batch_tokens=num_micro_steps * layout.dp_size * 32,
    )
    engine, stream = make_engine(recipe, layout)
    batch = stream.step(0)[0]
    for _ in range(num_micro_steps):
        loss_sum, _ = engine.weighted_loss(ModelInputs.of(batch), batch.is_target_BS.float())
        engine.backward_and_step(loss_sum, divisor=64.0, lr=0.0)
    return float(loss_sum), engine.captured


def probes_before_steps(layout: Layout) -> tuple[int, int]:
    """How often ZeRO-3 forgot an order of modules in 4 steps, and how many it knows then."""
    recipe = tiny_recipe(
        deepspeed=bf16_config(layout, **PARTITIONED),
        train__micro_batch_samples=1,
        train__global_batch_tokens=layout.dp_size * 32,
    )
    engine, stream = make_engine(recipe, layout)
    batch = stream.step(0)[0]
    inputs, num_forgotten = ModelInputs.of(batch), 0
    forget = PartitionedParameterCoordinator._invalidate_trace

    def count(coordinator: Any) -> None:
        nonlocal num_forgotten
        num_forgotten += 1
        forget(coordinator)

    with patch.object(PartitionedParameterCoordinator, "_invalidate_trace", count):
        for _ in range(4):
            expected = engine.probe(inputs).nll_BS
            loss_sum, scored = engine.weighted_loss(inputs, batch.is_target_BS.float())
            assert torch.equal(scored.nll_BS, expected)
            engine.backward_and_step(loss_sum, divisor=64.0, lr=0.0)
    coordinators = (engine.ds.optimizer._get_param_coordinator(), engine.probe_trace._coordinator)
    return num_forgotten, sum(each.is_complete_trace() for each in coordinators)


def on_two_ranks() -> dict[str, Any]:
    layout = init_layout(sp_size=1)
    return {
        "1": gradients_of_equal_micro_steps(layout, 1, **PARTITIONED),
        "4": gradients_of_equal_micro_steps(layout, 4, **PARTITIONED),
        "probes": probes_before_steps(layout),
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


def test_a_probe_before_each_pass_leaves_both_orders_of_modules_known(measured):
    """Without a complete order ZeRO-3 gathers no weights ahead."""
    assert [rank["probes"] for rank in measured] == [(0, 2)] * 2
