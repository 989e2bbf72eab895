"""Forecasts of memory against what steps hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from launch.planner.forecast import Forecast, forecast
from launch.planner.machine import Machine
from launch.planner.models import find_architecture
from launch.planner.prefetch import gathered_numbers, order_of_uses
from launch.planner.zero import read_zero
from tests.grids import WHOLE
from tests.launch.measured_memory import measure_peaks
from tests.launch.planned_shapes import SHAPES, Shape, beside_adapter, forecast_peaks
from tests.launch.shipped_recipes import LONG, QWEN_8B, RECIPES, REPO_ROOT
from training.config.ema import Ema
from training.config.load import load_recipe
from training.config.teacher import Teacher

pytestmark = pytest.mark.usefixtures("in_repository")


OF_EACH_KIND = ("experts, checkpointing", "clamped experts", "latent", "delta",
                "delta, checkpointing", "mamba", "convolution", "several sizes", "tiled",
                "tiled, long sample")  # fmt: skip


MEASURED = (
    *("activations", "two to a sample", "experts", "stage 1"),
    *(("all kept whole", "tied", *OF_EACH_KIND) if WHOLE else ()),
)


@pytest.mark.parametrize("shape", [s for s in SHAPES if s.name in MEASURED], ids=lambda s: s.name)
def test_forecast_is_within_a_tenth_of_what_steps_hold(shape: Shape, tmp_path: Path) -> None:
    recipe = shape.recipe(tmp_path)
    measured = measure_peaks(recipe, world_size=shape.num_ranks)
    forecasts = forecast_peaks(recipe, num_ranks=shape.num_ranks)
    assert forecasts["load"].total == pytest.approx(measured["load"], rel=0.1)
    assert forecasts["forward"].total == pytest.approx(measured["forward"], rel=0.1)
    assert forecasts["backward"].total == pytest.approx(measured["backward"], rel=0.1)
    assert forecasts["step"].total == pytest.approx(measured["update"], rel=0.1)


def test_a_teacher_and_an_average_are_forecast_within_a_tenth(tmp_path: Path) -> None:
    plain = next(shape for shape in SHAPES if shape.name == "bf16, checkpointing").recipe(tmp_path)
    recipe = replace(plain, ema=Ema(half_life_steps=4.0), teacher=Teacher(kind="ema"))
    measured = measure_peaks(recipe, world_size=2)
    forecasts = forecast_peaks(recipe, num_ranks=2)
    assert forecasts["load"].total == pytest.approx(measured["load"], rel=0.1)
    assert forecasts["forward"].total == pytest.approx(measured["forward"], rel=0.1)
    assert forecasts["backward"].total == pytest.approx(measured["backward"], rel=0.1)
    assert forecasts["step"].total == pytest.approx(measured["update"], rel=0.1)


def test_a_stored_teacher_takes_neither_weights_nor_a_forward_pass() -> None:
    def planned(teacher: Teacher | None) -> Forecast:
        recipe = replace(load_recipe(QWEN_8B), teacher=teacher)
        return forecast(recipe, Machine(num_gpus=64, gpu_gib=80.0, corpus_tokens=10**8))

    none, base = planned(None), planned(Teacher(kind="base"))
    stored = planned(Teacher(kind="scores", scores="8b"))
    assert stored.duration == none.duration
    assert base.duration.passes.hardware == none.duration.passes.hardware + 1
    for phase in ("save", "backward", "step"):
        assert stored.moments[phase] == none.moments[phase]
    in_forward = [each.moments["forward"].total for each in (none, stored, base)]
    assert in_forward[0] < in_forward[1] < in_forward[2]


@pytest.mark.parametrize("kind", ["lora", *(("dora",) if WHOLE else ())])
def test_an_adapter_is_forecast_within_a_tenth(tmp_path: Path, kind: str) -> None:
    """Loading is not compared: here the whole base passes through the same memory."""
    plain = next(shape for shape in SHAPES if shape.name == "bf16, checkpointing").recipe(tmp_path)
    recipe = beside_adapter(plain, tmp_path, kind=kind)
    measured = measure_peaks(recipe, world_size=2)
    forecasts = forecast_peaks(recipe, num_ranks=2)
    assert forecasts["forward"].total == pytest.approx(measured["forward"], rel=0.1)
    assert forecasts["backward"].total == pytest.approx(measured["backward"], rel=0.1)
    assert forecasts["step"].total == pytest.approx(measured["update"], rel=0.12)


def test_frozen_weights_have_neither_gradients_nor_optimizer_state() -> None:
    machine = Machine(num_gpus=1, gpu_gib=6)
    recipe = load_recipe(RECIPES / "qwen3_0.6b_lora.yaml")
    assert forecast(recipe, machine).fits
    planned = forecast(replace(recipe, ema=None, teacher=None), machine)
    # rank 16; q and o have 1024 + 2048 inputs and outputs, k and v 2048, the MLP's three 4096
    assert planned.arch.trained == 28 * 16 * (2 * 3072 + 2 * 2048 + 3 * 4096)
    held = planned.moments["save"]
    assert held.parameters == 2 * (planned.arch.parameters + planned.arch.trained)
    assert held.gradients == 4 * planned.arch.trained
    assert held.optimizer == 12 * planned.arch.trained
    assert planned.host.checkpoint_on_disk == 12 * planned.arch.trained


def test_an_average_of_the_weights_costs_its_fp32_shards(tmp_path: Path) -> None:
    plain = next(shape for shape in SHAPES if shape.name == "bf16, checkpointing").recipe(tmp_path)
    averaged = replace(plain, ema=Ema(half_life_epochs=1.0))
    without, with_average = (forecast_peaks(each, num_ranks=2) for each in (plain, averaged))
    parameters = find_architecture(plain).parameters
    for phase, more_bytes in {"forward": 4, "step": 4, "save": 4, "evaluation": 4 + 2}.items():
        more = with_average[phase].total - without[phase].total
        assert more == pytest.approx(more_bytes * parameters / 2, rel=1e-3)


def test_regularisers_cost_a_copy_of_the_base_and_a_byte_for_each_channel_that_may_drop() -> None:
    def planned(names: str) -> Forecast:
        recipe = load_recipe(QWEN_8B, [f"regularisers=[{names}]"])
        recipe = replace(recipe, model=replace(recipe.model, activation_checkpointing=False))
        return forecast(recipe, Machine(num_gpus=64, gpu_gib=80.0, corpus_tokens=10**8))

    plain, near = planned("none"), planned("l2_sp")
    more = near.moments["step"].total - plain.moments["step"].total
    assert more == pytest.approx(2 * plain.arch.parameters / 64, rel=1e-3)
    arch, tokens = plain.arch, plain.run.activations.tokens
    more = planned("mlp_dropout").moments["forward"].total - plain.moments["forward"].total
    assert more == arch.layers * arch.intermediate * tokens
    assert planned("none").duration.passes.hardware == 3.0
    assert planned("entrodrop,mir").duration.passes.hardware == 2 * 3.0  # entropies of a reference
    assert not planned("eaft").run.one_pass_head


def test_gathered_weights_stay_within_what_deepspeed_is_told() -> None:
    recipe = load_recipe(QWEN_8B)
    arch, zero = find_architecture(recipe), read_zero(recipe)
    uses, sizes = order_of_uses(arch, checkpointing=True)
    walked = gathered_numbers(arch, zero, checkpointing=True)
    assert [use for use, _ in walked] == list(uses)
    most = max(numbers for _, numbers in walked)
    # twice the weights gathered ahead, which are copied out of their buffer
    largest = max(sum(sizes[weight] for weight in use.weights) for use in uses)
    assert most <= zero.max_live + largest + 2 * (zero.prefetch_bucket + largest)
    assert all(numbers >= sum(sizes[w] for w in use.weights) for use, numbers in walked)


def test_offloaded_inputs_of_layers_are_on_the_host_and_not_on_the_gpu() -> None:
    machine = Machine(num_gpus=8, gpu_gib=80)
    before = forecast(load_recipe(LONG), machine)
    after = forecast(load_recipe(LONG, ["model.activation_offloading=true"]), machine)
    inputs = 36 * 16_384 * 4096 * 2
    for phase in ("forward", "backward"):
        fallen = before.moments[phase].activations - after.moments[phase].activations
        assert fallen == pytest.approx(inputs, rel=0.03)  # one at a time is on the GPU
    assert before.moments["step"] == after.moments["step"]
    assert after.host.activations == after.host.pinned == 8 * inputs  # powers of two by themselves
    assert after.host.peak_bytes - before.host.peak_bytes == 8 * inputs


def test_tiles_are_planned_for_layers_that_have_a_plain_mlp() -> None:
    machine = Machine(num_gpus=8, gpu_gib=80)
    plain = forecast(load_recipe(LONG), machine)
    tiled = forecast(load_recipe(LONG, ["model.tiled_mlp=true"]), machine)
    assert not plain.run.activations.is_tiled and tiled.run.activations.is_tiled
    held = [each.moments["backward"].activations for each in (plain, tiled)]
    inner = (4 + 1) * 12_288 * 2  # of a token; there are four times as many as in a tile
    assert held[0] - held[1] > 0.5 * (16_384 - 4096) * inner
    share = 2 * 36 * 3 * 4096 * 12_288 / (plain.duration.flops_per_token / 4)
    assert tiled.duration.passes.hardware == pytest.approx(4 + share)
    assert tiled.duration.passes.model == 3


def test_fused_layers_keep_no_copies_in_fp32_and_no_activation_of_the_gate() -> None:
    """As a count of what Liger's functions save: norms' inputs as they are, gate, up, product."""
    plain, fused = (
        forecast(load_recipe(LONG, [f"model.kernels={kernels}"]), Machine(8, gpu_gib=80))
        for kernels in ("plain", "liger")
    )
    acts, layer = plain.run.activations, plain.arch.stack[0]
    queries, keys, hidden, inner = 4096, 1024, 4096, 12_288
    of_token = 2 * 4 * hidden + 4 * (queries + keys) + 2 * inner
    assert acts.layer(layer) - fused.run.activations.layer(layer) == acts.tokens * of_token


def test_a_second_partition_costs_a_share_of_the_weights_from_forward_to_update(
    tmp_path: Path,
) -> None:
    config = json.loads((REPO_ROOT / "ds_configs" / "zero3.json").read_text())
    config["zero_optimization"]["zero_hpz_partition_size"] = 8
    (tmp_path / "hpz.json").write_text(json.dumps(config))
    machine = Machine(num_gpus=64, gpu_gib=80)
    plain = forecast(load_recipe(QWEN_8B), machine)
    doubled = forecast(load_recipe(QWEN_8B, [f"deepspeed={tmp_path / 'hpz.json'}"]), machine)
    assert plain.moments["load"] == doubled.moments["load"]
    for phase in ("forward", "backward", "step", "save"):
        added = doubled.moments[phase].total - plain.moments[phase].total
        assert added == pytest.approx(2 * plain.arch.parameters / 8, rel=1e-3)
    with pytest.raises(ValueError, match="zero_hpz_partition_size 8 does not divide the number"):
        forecast(doubled.recipe, Machine(num_gpus=4, gpu_gib=80))
    for wrong in (0, -1, 2.5, "8", None, True):
        config["zero_optimization"]["zero_hpz_partition_size"] = wrong
        (tmp_path / "hpz.json").write_text(json.dumps(config))
        told = f"hpz.json: .*: expected a whole number of at least 1 .is {wrong!r}.$"
        with pytest.raises(ValueError, match=told):
            forecast(doubled.recipe, machine)
