"""`zero_hpz_partition_size`: the same numbers, and weights that are replaced are seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import ranks_folder, run_ranks
from tests.training.layouts import tiny_recipe
from tests.training.measured_layouts import make_engine, step_without_update
from training.model.inputs import ModelInputs
from training.model.shadow import AveragedWeights
from training.ranks.dist import init_layout

ROOT = Path(__file__).resolve().parents[2]


def losses_and_gradients(partition_ranks: int) -> dict[str, Any]:
    """Of probes before, within and behind other weights, and of a step after them."""
    config = json.loads((ROOT / "ds_configs/zero3_fp32.json").read_text())
    config["zero_optimization"]["zero_hpz_partition_size"] = partition_ranks
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    path = ranks_folder() / f"zero-{init_layout(sp_size=1).rank}.json"
    path.write_text(json.dumps(config))
    recipe = tiny_recipe(deepspeed=str(path), regulariser="none", train__micro_batch_samples=2)
    engine, stream = make_engine(recipe, init_layout(sp_size=1))
    inputs = ModelInputs.of(stream.step(0)[0])

    def probe() -> float:
        return float(engine.probe(inputs).nll_BS.sum())

    found = [probe()]
    copies = sum(
        getattr(weight, "ds_secondary_tensor", None) is not None
        for weight in engine.model.parameters()
    )
    average = AveragedWeights(engine, decay=0.5)
    for shard in average.shards.values():
        shard.mul_(0.5)
    with average.in_use():
        found.append(probe())
    found.append(probe())
    step = step_without_update(recipe, engine, stream)
    return {"probes": found, "copies": copies, "loss": step["row"]["loss"]} | step["gradients"]


def test_weights_in_a_second_partition_are_never_old_ones():
    plain, doubled = (run_ranks(losses_and_gradients, n, world_size=2) for n in (1, 2))
    for expected, found in zip(plain, doubled, strict=True):
        assert not expected.pop("copies") and found.pop("copies"), "there is no second partition"
        assert found["probes"] == pytest.approx(expected["probes"], rel=1e-6)
        assert found["probes"][0] == found["probes"][2] != pytest.approx(found["probes"][1])
        for name, number in expected.items():
            if name != "probes":
                difference = abs(found[name] - number)
                assert float(difference.max() if name != "loss" else difference) < 1e-5, name
