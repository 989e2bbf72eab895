"""`model.kernels: liger`: what it refuses, which parts it replaces, and the check of its numbers.

Liger's own kernels run in `benchmarks.gpu_proof` and the test marked gpu.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.qwen3 import modeling_qwen3

from tests.training.layouts import tiny_recipe
from tests.training.stand_in_liger import stand_in_liger
from training.config.sections import Model
from training.data.documents import find_documents
from training.model import causal_lm, engine, fused_check, fused_layers
from training.model.attention import ATTENTION_NAME, register_attention
from training.model.causal_lm import resolve_model_config
from training.model.fused_check import check_fused, measure_errors
from training.model.fused_layers import FAMILIES, fuse_layers, fused_parts, refuse_fused
from training.model.inputs import NO_REGULARISATION
from training.model.tiny import plain_model
from training.ranks.dist import Layout

CPU = torch.device("cpu")


def model_of(family: str, **sizes: int) -> Model:
    return Model(config={"model_type": family, "vocab_size": 64, **sizes}, kernels="liger")


def tiny(dtype: torch.dtype = torch.bfloat16):
    model = tiny_recipe(model__kernels="liger").model
    return model, resolve_model_config(model, vocab_size=101, dtype=dtype)


@pytest.mark.parametrize(
    ("family", "has_gpu", "told"),
    [
        ("opt", True, f"does not cover opt (it covers {', '.join(FAMILIES)}): set it to plain"),
        ("llama", False, "liger needs a GPU, and this is a run on CPUs: set plain"),
        ("llama", True, "liger needs liger-kernel: pip install '.[kernels]' in the checkout"),
    ],
)
def test_what_cannot_be_fused_is_refused_in_a_sentence(monkeypatch, family, has_gpu, told):
    monkeypatch.setattr(fused_layers, "find_spec", lambda name: None)
    model = model_of(family)
    config = resolve_model_config(model, vocab_size=64, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"^model\.kernels: liger") as caught:
        refuse_fused(model, config, has_gpu=has_gpu)
    assert told in str(caught.value)


def test_norms_rotations_and_mlps_of_this_model_are_replaced_and_of_no_other():
    register_attention()
    model, config = tiny(torch.float32)
    fused, other = (plain_model(model, config, attention=ATTENTION_NAME) for _ in range(2))
    before = dict(vars(modeling_qwen3))
    positions_1T = torch.arange(6)[None]
    inputs = {"inputs_embeds": torch.randn(1, 6, 16), "position_ids": positions_1T}
    inputs["document_layout"] = find_documents(positions_1T, device=CPU)
    with stand_in_liger() as rotated:
        fuse_layers(fused)
        assert dict(vars(modeling_qwen3)) == before
        other.base_model(**inputs)
        assert not rotated
        fused.base_model(**inputs)
        assert rotated == [4, 4]
    assert not fused_parts(other)
    of_layer = {
        name.removeprefix("model.layers.1."): kind for name, kind in fused_parts(fused).items()
    }
    norms = ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")
    assert {name: of_layer[name] for name in norms} == dict.fromkeys(norms, "LigerRMSNorm")
    assert of_layer["mlp"] == "LigerSwiGLUMLP"
    assert "self_attn" in of_layer
    assert of_layer["model.norm"] == "LigerRMSNorm"
    assert not any(vars(module).get("in_place") for module in fused.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_layer_within_rounding_passes_and_one_beyond_it_is_refused(monkeypatch, dtype):
    monkeypatch.setattr(fused_check, "refuse_fused", lambda *args, **keywords: None)
    model, config = tiny(dtype)
    with stand_in_liger() as rotated:
        check_fused(model, config, device=CPU)
        assert rotated == [4]
        errors = measure_errors(model, config, device=CPU)
        assert {"output", "gradient of its input", "gradient of model.norm.weight"} < errors.keys()
        assert all(plain for _, plain, _ in errors.values()), "nothing was rounded"
    with (
        stand_in_liger(offset=0.05),
        pytest.raises(ValueError, match=r"computes another output than transformers here: off by"),
    ):
        check_fused(model, config, device=CPU)


@pytest.mark.parametrize(
    ("regularisation", "kernels"), [(NO_REGULARISATION, "liger"), (None, "plain")]
)
def test_training_is_fused_and_an_evaluation_is_not(monkeypatch, regularisation, kernels):
    recipe = tiny_recipe(model__kernels="liger")
    _, config = tiny(torch.float32)

    def build_model(model: Model, *args: Any, **keywords: Any) -> None:
        raise InterruptedError(model.kernels)

    monkeypatch.setattr(engine, "build_model", build_model)
    with pytest.raises(InterruptedError, match=kernels):
        engine.build_engine(
            recipe,
            config,
            layout=Layout(0, 1, 1, CPU),
            num_micro_steps=1,
            regularisation=regularisation,
        )


def test_a_model_for_training_is_fused(monkeypatch):
    fused: list[Any] = []
    monkeypatch.setattr(causal_lm, "fuse_layers", fused.append)
    model, config = tiny(torch.float32)
    stage = {"zero_optimization": {"stage": 1}}
    built = causal_lm.build_model(model, config, ds_config=stage, seed=0)
    assert fused == [built.lm]
