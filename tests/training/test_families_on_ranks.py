"""Kinds of layers whose work depends on the tokens or on heads of odd sizes, on several ranks."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest

from tests.distributed import run_ranks
from tests.grids import WHOLE
from tests.training.families import measure_all

MLA = {"num_attention_heads": 4, "num_key_value_heads": 4, "n_group": 1, "topk_group": 1}
FEW = {"num_attention_heads": 4, "num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt_oss": FEW | {"num_local_experts": 4, "num_experts_per_tok": 1},
    "mixtral": FEW | {"num_local_experts": 6, "num_experts_per_tok": 2},
    "qwen3_moe": FEW | {"num_experts": 16, "num_experts_per_tok": 1},
    "olmoe": FEW | {"num_experts": 8, "num_experts_per_tok": 2},
    "deepseek_v2": MLA | {"n_routed_experts": 8, "num_experts_per_tok": 2},
    "deepseek_v3": MLA | {"n_routed_experts": 8, "num_experts_per_tok": 2},
    "glm4_moe_lite": MLA | {"n_routed_experts": 8, "num_experts_per_tok": 2},
}

MAMBA = FEW | {"layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2}
DELTA = MAMBA | {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
HYBRIDS: dict[str, dict[str, Any]] = {
    "qwen3_5_text": DELTA,
    "qwen3_next": DELTA | {"num_experts": 4, "num_experts_per_tok": 2},
    "granitemoehybrid": MAMBA | {"mamba_n_heads": 8, "hidden_size": 64, "num_local_experts": 0},
    "lfm2": FEW | {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "falcon_h1": FEW | {"num_hidden_layers": 2, "mamba_n_heads": 8, "mamba_d_ssm": 64},
}

SOME = ("gpt_oss", "qwen3_moe", "deepseek_v3", "qwen3_5_text", "granitemoehybrid", "lfm2")
if not WHOLE:
    FAMILIES = {name: keys for name, keys in FAMILIES.items() if name in SOME}
    HYBRIDS = {name: keys for name, keys in HYBRIDS.items() if name in SOME}


def configs(sp_size: int) -> dict[str, dict[str, Any]]:
    families = FAMILIES | HYBRIDS if sp_size == 1 else FAMILIES
    return {family: {"model_type": family, **keys} for family, keys in families.items()}


measured = functools.cache(
    lambda sp_size: run_ranks(measure_all, configs(sp_size), sp_size, world_size=2)
)


@pytest.mark.parametrize(
    ("family", "sp_size"),
    [*itertools.product(FAMILIES, (1, 2)), *itertools.product(HYBRIDS, (1,))],
)
def test_losses_and_gradients_are_those_of_plain_transformers(family, sp_size):
    assert [rank[family] for rank in measured(sp_size)] == [None, None]
