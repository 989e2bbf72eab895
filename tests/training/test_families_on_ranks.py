"""Kinds of layers whose work depends on the tokens or on heads of odd sizes, on several ranks."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.distributed import run_ranks
from tests.grids import WHOLE
from tests.training.layouts import tiny_recipe
from tests.training.measured_layouts import CapturingEngine
from training.data.documents import find_documents
from training.model.causal_lm import resolve_model_config
from training.model.engine import build_engine
from training.model.inputs import NO_REGULARISATION, ModelInputs
from training.model.tiny import VOCAB_SIZE, plain_model, tiny_config
from training.ranks.dist import init_layout

LENGTHS = ((7, 11, 1, 9, 4), (3, 20, 1, 8))
"""Tokens of the documents of each row; some lie on both sides of the middle."""
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


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and positions `[2, 32]`; the first row is one token alone, for the same experts."""
    ids_BT = torch.randint(0, VOCAB_SIZE, (2, 32), generator=torch.Generator().manual_seed(0))
    ids_BT[0] = 5
    positions_BT = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in LENGTHS])
    return ids_BT, positions_BT


def measure_all(sp_size: int) -> dict[str, str | None]:
    """By family, what differs from plain transformers on this rank."""
    families = FAMILIES | HYBRIDS if sp_size == 1 else FAMILIES
    return {family: measure(family, keys, sp_size=sp_size) for family, keys in families.items()}


def measure(family: str, keys: dict[str, Any], *, sp_size: int) -> str | None:
    layout = init_layout(sp_size=sp_size)
    base = {"model_type": family, **keys}
    changes = {"train__sequence_parallel_size": sp_size, "model__config": base}
    recipe = tiny_recipe(**changes, train__micro_batch_samples=sp_size)
    config = tiny_config(
        recipe.model,
        resolve_model_config(recipe.model, vocab_size=VOCAB_SIZE, dtype=torch.float32),
        sequence_tokens=32,
    )
    engine = build_engine(
        recipe, config, layout=layout, num_micro_steps=1, regularisation=NO_REGULARISATION
    )
    engine = CapturingEngine(**vars(engine))
    torch.manual_seed(1)
    plain = plain_model(recipe.model, config).eval()
    for weight in plain.parameters():
        weight.data += torch.randn_like(weight) * 0.1
    engine.put(dict(plain.named_parameters()))
    ids_BT, positions_BT = rows()
    nlls = []
    for ids_T, lengths in zip(ids_BT, LENGTHS, strict=True):
        for ids in ids_T.split(lengths):
            logits = plain(input_ids=ids[None], use_cache=False).logits[0]
            nlls.append(F.cross_entropy(logits, ids, reduction="none"))
    nll_BT = torch.cat(nlls).view(2, -1)
    nll_BT.sum().backward()
    own = (slice(None), slice(16 * layout.rank, 16 * layout.rank + 16))
    if sp_size == 1:
        own = (slice(layout.rank, layout.rank + 1), slice(None))
    seen_BT = positions_BT if sp_size > 1 else positions_BT[own]
    inputs = ModelInputs(
        ids_BS=ids_BT[own],
        position_ids_BS=positions_BT[own].contiguous(),
        targets_BS=ids_BT[own],
        documents=find_documents(seen_BT, device=layout.device),
    )
    engine.ds.eval()
    found = engine.score(inputs)
    engine.backward_and_step(found.nll_BS.sum(), divisor=1.0, lr=0.0)
    differences = {"nll": float((found.nll_BS - nll_BT[own]).abs().max())}
    for name, weight in plain.named_parameters():
        grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        difference = (engine.captured[f"lm.{name}"] - grad).norm()
        differences[name] = float(difference / (grad.norm() + 0.1))
    forget(engine)
    wrong = {name: value for name, value in differences.items() if not value < 1e-5}
    return str(wrong) if wrong else None


def forget(engine: Any) -> None:
    """DeepSpeed shards sequences once per process."""
    from deepspeed.runtime.sequence_parallel import parallel_state_sp

    engine.ds.destroy()
    parallel_state_sp._SEQUENCE_PARALLEL_GROUP = None
    parallel_state_sp._SEQUENCE_DATA_PARALLEL_GROUP = None


measured = functools.cache(lambda sp_size: run_ranks(measure_all, sp_size, world_size=2))


@pytest.mark.parametrize(
    ("family", "sp_size"),
    [*itertools.product(FAMILIES, (1, 2)), *itertools.product(HYBRIDS, (1,))],
)
def test_losses_and_gradients_are_those_of_plain_transformers(family, sp_size):
    assert [rank[family] for rank in measured(sp_size)] == [None, None]
