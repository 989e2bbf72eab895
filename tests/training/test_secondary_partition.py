"""`zero_hpz_partition_size`: the same numbers, and weights that are replaced are seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from transformers import PretrainedConfig

from tests.distributed import ranks_folder, run_ranks
from tests.grids import WHOLE
from tests.training.layouts import tiny_recipe
from tests.training.measured_layouts import make_engine, step_without_update
from training.model import engine
from training.model.inputs import NO_REGULARISATION, ModelInputs, ModelRegularisation
from training.model.shadow import AveragedWeights
from training.ranks.dist import init_layout

ROOT = Path(__file__).resolve().parents[2]


def measure(partition_ranks: int, with_step: bool) -> dict[str, Any]:
    """Of probes before, within and behind other weights, and of a step after them."""
    layout = init_layout(sp_size=1)
    config = json.loads((ROOT / "ds_configs/zero3_fp32.json").read_text())
    config["zero_optimization"]["zero_hpz_partition_size"] = partition_ranks
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    path = ranks_folder() / f"zero-{layout.rank}.json"
    path.write_text(json.dumps(config))
    recipe = tiny_recipe(deepspeed=str(path), regulariser="none", train__micro_batch_samples=2)
    engine, stream = make_engine(recipe, layout)
    inputs = ModelInputs.of(stream.step(0)[0])

    def probe() -> float:
        return float(engine.probe(inputs).nll_BS.sum())

    probes = [probe()]
    copies = sum(
        getattr(weight, "ds_secondary_tensor", None) is not None
        for weight in engine.model.parameters()
    )
    average = AveragedWeights(engine, decay=0.5)
    for shard in average.shards.values():
        shard.mul_(0.5)
    with average.in_use():
        probes.append(probe())
    probes.append(probe())
    step = step_without_update(recipe, engine, stream) if with_step else {}
    return {"probes": probes, "copies": copies} | step


@pytest.mark.parametrize("world_size", [2, 4] if WHOLE else [2])
def test_weights_in_a_second_partition_are_never_old_ones(world_size):
    doubled = run_ranks(measure, 2, WHOLE, world_size=world_size)
    for found in doubled:
        assert found["copies"], "there is no second partition"
        own, other, again = found["probes"]
        assert own == again
        assert abs(other - own) > 1.0
    plain = run_ranks(measure, 1, WHOLE, world_size=world_size) if WHOLE else []
    for expected, found in zip(plain, doubled, strict=WHOLE):
        assert not expected["copies"]
        assert found["probes"] == pytest.approx(expected["probes"], rel=1e-6)
        assert found["row"]["loss"] == pytest.approx(expected["row"]["loss"], rel=1e-6)
        for name, gradient in expected["gradients"].items():
            assert (found["gradients"][name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def zero_section(regularisation: ModelRegularisation | None) -> dict[str, Any]:
    """That the model of an engine is built under."""
    config = json.loads((ROOT / "ds_configs/zero3_fp32.json").read_text())
    config["zero_optimization"]["zero_hpz_partition_size"] = 2
    path = ranks_folder() / "zero.json"
    path.write_text(json.dumps(config))
    with (
        patch.object(engine, "build_model", side_effect=InterruptedError) as build,
        pytest.raises(InterruptedError),
    ):
        engine.build_engine(
            tiny_recipe(deepspeed=str(path)),
            PretrainedConfig(),
            layout=init_layout(sp_size=1),
            num_micro_steps=1,
            regularisation=regularisation,
        )
    return build.call_args.kwargs["ds_config"]["zero_optimization"]


def test_an_evaluation_has_no_second_partition_so_that_it_runs_on_any_number_of_processes():
    (trained,), (evaluated,) = (
        run_ranks(zero_section, regularisation, world_size=1)
        for regularisation in (NO_REGULARISATION, None)
    )
    assert trained.pop("zero_hpz_partition_size") == 2
    assert evaluated == trained
