"""What attention, a head or a tiny model leaves out gives other losses, and the gate says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

import training.model.attention
from tests.training.gates import FULL, SEQUENCE_TOKENS, gate
from training.config.sections import Model
from training.data.documents import find_documents
from training.model.attention import document_attention
from training.model.length_rope import LengthRope
from training.model.output_layer import EntropyHead
from training.model.tiny import tiny_config


def tiny(model_type: str, **keys: Any) -> PretrainedConfig:
    model = Model(config={"model_type": model_type, **keys})
    config = AutoConfig.for_model(model_type, **keys)
    return tiny_config(model, config, sequence_tokens=SEQUENCE_TOKENS)


def test_a_tiny_model_has_the_first_layers_up_to_one_of_each_kind():
    assert tiny("llama", num_hidden_layers=32).num_hidden_layers == 2
    assert tiny("llama", num_hidden_layers=1).num_hidden_layers == 1
    gemma = tiny("gemma3_text")
    assert gemma.layer_types == ["sliding_attention"] * 5 + ["full_attention"]
    assert tiny("glm4_moe", first_k_dense_replace=3).num_hidden_layers == 4
    assert tiny("qwen3_moe", mlp_only_layers=[4]).num_hidden_layers == 5


def test_a_tiny_models_window_is_exceeded_if_and_only_if_the_models_may_be():
    assert tiny("mistral", sliding_window=SEQUENCE_TOKENS - 1).sliding_window == 5
    assert tiny("mistral", sliding_window=SEQUENCE_TOKENS).sliding_window > 1000
    assert tiny("mistral", sliding_window=None).sliding_window is None


def own_arguments(_: Tensor | None, keywords: dict[str, Any]) -> tuple[Tensor | None, Any]:
    """Without a mask, and without what this attention does not know: as it was once."""
    return None, {name: keywords[name] for name in ("document_layout", "scaling")}


def twice_as_sharp(mask: Tensor | None, keywords: dict[str, Any]) -> tuple[Tensor | None, Any]:
    return mask, keywords | {"scaling": 2 * keywords["scaling"]}


def without_a_cap(mask: Tensor | None, keywords: dict[str, Any]) -> tuple[Tensor | None, Any]:
    return mask, keywords | {"softcap": None}


def without_a_window(mask: Tensor | None, keywords: dict[str, Any]) -> tuple[Tensor | None, Any]:
    return mask, keywords | {"sliding_window": None}


def without_alibi(mask: Tensor | None, keywords: dict[str, Any]) -> tuple[Tensor | None, Any]:
    return mask, keywords | {"key_bias": None}


def in_one_document(mask: Tensor | None, keywords: dict[str, Any]) -> tuple[Tensor | None, Any]:
    layout = keywords["document_layout"]
    length = layout.boundaries[-1] // 2
    rows = torch.arange(length).expand(2, length)
    return mask, keywords | {"document_layout": find_documents(rows, device=torch.device("cpu"))}


@pytest.mark.parametrize(
    ("model_type", "keys", "plant"),
    [
        ("flint", FULL, own_arguments),
        ("gpt_oss", FULL, own_arguments),
        ("granite_swa", FULL, own_arguments),
        ("granitemoe_swa", FULL, own_arguments),
        ("inkling_text", FULL, own_arguments),
        ("doge", {}, own_arguments),
        ("gemma2", {"final_logit_softcapping": None}, without_a_cap),
        ("mistral", {"sliding_window": 32}, without_a_window),
        ("bloom", {}, without_alibi),
        ("llama", {}, twice_as_sharp),
        ("llama", {}, in_one_document),
    ],
)
def test_attention_that_leaves_something_out_gives_other_losses(
    monkeypatch: pytest.MonkeyPatch, model_type: str, keys: dict[str, Any], plant: Callable
) -> None:
    def planted(*tensors: Any, **keywords: Any) -> Any:
        *states, mask = (*tensors, keywords.pop("attention_mask", None))[:5]
        mask, keywords = plant(mask, keywords)
        return document_attention(*states, mask, **keywords)

    monkeypatch.setattr(training.model.attention, "document_attention", planted)
    message = gate(model_type, **keys)
    assert message is not None and "its losses here differ from those of" in message


@pytest.mark.parametrize("part", [0, 1])
def test_a_head_with_another_loss_or_entropy_is_found(monkeypatch, part):
    plain = EntropyHead.forward

    def planted(*arguments: Any, **named: Any) -> Any:
        scored = list(plain(*arguments, **named))
        scored[part] = scored[part] * 1.001
        return tuple(scored)

    monkeypatch.setattr(EntropyHead, "forward", planted)
    message = gate("llama")
    assert message is not None and "its losses here differ from those of" in message


FACTORS = {"short_factor": [1.0] * 48, "long_factor": [4.0] * 48}
LONGROPE = {
    "rope_scaling": {"type": "longrope", **FACTORS},
    "max_position_embeddings": 512,
    "original_max_position_embeddings": SEQUENCE_TOKENS - 1,
}
DYNAMIC = {
    "rope_scaling": {"rope_type": "dynamic", "factor": 4.0},
    "max_position_embeddings": SEQUENCE_TOKENS - 1,
}


@pytest.mark.parametrize(("model_type", "keys"), [("phi3", LONGROPE), ("llama", DYNAMIC)])
def test_one_length_for_all_documents_gives_other_losses(monkeypatch, model_type, keys):
    """As transformers has it: that of the longest row."""
    assert gate(model_type, **keys) is None
    monkeypatch.setattr(LengthRope, "__init__", lambda self, lm: None)
    monkeypatch.setattr(LengthRope, "begin", lambda self, inputs: None)
    message = gate(model_type, **keys)
    assert message is not None and "its losses here differ from those of" in message
