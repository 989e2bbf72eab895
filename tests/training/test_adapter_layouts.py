"""Steps beside a frozen base have the same numbers on any layout, with dropout in the adapter."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.distributed import run_ranks
from tests.grids import WHOLE
from tests.training.layouts import ZERO1_FP32, tiny_recipe
from tests.training.measured_layouts import DROPOUTS, LAYOUTS, measure
from training.config.adapter import Adapter
from training.model.adapter import AdapterDropout, AdapterError, inject_adapter

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 3, "alpha": 2, "dropout": 0.2},
    "dora": {"kind": "dora", "rank": 3, "alpha": 2, "targets": ["q_proj", "o_proj", "up_proj"]},
}
CHECKPOINTED = "dora"
REGULARISED = list(DROPOUTS) if WHOLE else ["off", "both_beside_hidden_dropout"]
STAGES = {"zero3": {}, "zero1": {"deepspeed": ZERO1_FP32}}
CASES = [
    (stage, kind, layout)
    for stage in STAGES
    for kind in ADAPTERS
    for layout in LAYOUTS
    if layout != "one_process"
]
if not WHOLE:
    CASES = [("zero3", "lora", "dp_2_sp_2_accumulation_2"), ("zero3", "dora", "dp_2")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model of the other layouts, saved."""
    folder = tmp_path_factory.mktemp("base")
    config = AutoConfig.for_model(**(tiny_recipe().model.config or {}))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@functools.cache
def measured(base: Path, stage: str, kind: str, layout: str) -> list[dict[str, Any]]:
    world_size, sp_size, rows = LAYOUTS[layout]
    model = {
        "model": {"pretrained": str(base), "activation_checkpointing": kind == CHECKPOINTED},
        "adapter": ADAPTERS[kind],
        **STAGES[stage],
    }
    return run_ranks(measure, sp_size, rows, model, REGULARISED, world_size=world_size)


@pytest.mark.parametrize(("stage", "kind", "layout"), CASES)
def test_any_layout_has_the_losses_and_gradients_of_one_process(base, stage, kind, layout):
    (reference,) = measured(base, "zero3", kind, "one_process")
    for rank in measured(base, stage, kind, layout):
        for name in REGULARISED:
            expected, found = reference[name], rank[name]
            for key in ("loss", "objective", "grad_norm", "drop_rate_realised"):
                assert found["row"][key] == pytest.approx(expected["row"][key], rel=1e-5), key
            assert found["gradients"].keys() == expected["gradients"].keys()
            for weight, gradient in expected["gradients"].items():
                assert ".lora_" in weight
                difference = (found["gradients"][weight] - gradient).norm() / gradient.norm()
                assert difference < 2e-5, f"{weight}: relative difference {difference:.1e}"


def test_dropout_drops_at_its_rate_in_training_alone():
    dropout = AdapterDropout(rate=0.3, seed=1, number=2)
    x_BSD, index_BS = torch.ones(4, 50, 64), torch.arange(200).view(4, 50)
    dropout.begin(index_BS)
    dropped = dropout(x_BSD)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    torch.testing.assert_close(dropped[dropped > 0], torch.full_like(dropped, 1 / 0.7)[dropped > 0])
    assert torch.equal(dropout(x_BSD), dropped)
    other = AdapterDropout(rate=0.3, seed=1, number=3)
    other.begin(index_BS)
    assert not torch.equal(other(x_BSD), dropped)
    with pytest.raises(AdapterError, match="every token in its place"):
        dropout(x_BSD.flatten(0, 1))
    assert torch.equal(dropout.eval()(x_BSD), x_BSD)


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("q_prj", "is called q_prj; did you mean q_proj?"),
        ("lm_head", "is called lm_head; there are down_proj, gate_proj, k_proj, o_proj"),
    ],
)
def test_a_target_that_is_not_there_is_told(base, target, told):
    lm = AutoModelForCausalLM.from_pretrained(base)
    with pytest.raises(AdapterError, match=told):
        inject_adapter(lm, Adapter(targets=("v_proj", target)), seed=0)
