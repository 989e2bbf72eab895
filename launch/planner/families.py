"""What the layers of dense decoders are made of, by `model_type`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Family:
    """Layers, and what stands around them. A setting that is a string is read from the model."""

    names: Mapping[str, str] = field(default_factory=dict)
    """What the family calls the sizes of llama."""
    usual: Mapping[str, int] = field(default_factory=dict)
    """Sizes that the files of published models leave out."""
    head_dim: int | None = None
    """Numbers of a head where the model does not say; None for hidden size by heads."""
    gated: bool = True
    """The MLP has three weights, not two."""
    fused_qkv: bool = False
    fused_gate: bool = False
    layer_norm: bool = False
    """Norms have a bias, and keep less than RMSNorms."""
    norms: int = 2
    """Of a layer, without those of queries and keys."""
    qk_norm: Literal["", "head", "all"] = ""
    """Norms of queries and keys, of each head or of all together."""
    qkv_bias: bool | str = False
    out_bias: bool | str = False
    mlp_bias: bool | str = False
    head_bias: bool = False
    embedding_norm: bool = False
    positions: str | None = None
    """Setting with the number of learned positions."""
    more_positions: int = 0
    tied: bool = False
    """Where the model does not say."""
    activation: str = "hidden_act"
    """Setting with the name of the MLP's activation."""


_LLAMA = Family(qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias")
_OPEN = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
}
_GPT: dict[str, Any] = {"gated": False, "layer_norm": True, "mlp_bias": True}

FAMILIES: dict[str, Family] = {
    "bloom": Family(
        names={k: v for k, v in _OPEN.items() if k not in ("hidden_size", "intermediate_size")},
        fused_qkv=True, qkv_bias=True, out_bias=True, embedding_norm=True, tied=True, **_GPT,
    ),
    "cohere2": Family(norms=1, tied=True, qkv_bias="attention_bias", out_bias="attention_bias"),
    "exaone4": Family(qk_norm="head"),
    "gemma": Family(head_dim=256, tied=True, qkv_bias="attention_bias", out_bias="attention_bias"),
    "gemma2": Family(
        head_dim=256, norms=4, tied=True, qkv_bias="attention_bias", out_bias="attention_bias"
    ),
    "gemma3_text": Family(
        head_dim=256, norms=4, qk_norm="head", tied=True,
        qkv_bias="attention_bias", out_bias="attention_bias",
        usual={"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262_208},
    ),
    "glm4": Family(norms=4, fused_gate=True, qkv_bias="attention_bias", head_dim=128),
    "gpt2": Family(
        names=_OPEN, fused_qkv=True, qkv_bias=True, out_bias=True, positions="n_positions",
        tied=True, activation="activation_function", **_GPT,
    ),
    "gpt_neo": Family(
        names={"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"},
        out_bias=True, positions="max_position_embeddings", tied=True,
        activation="activation_function", **_GPT,
    ),
    "gpt_neox": Family(
        fused_qkv=True, qkv_bias="attention_bias", out_bias="attention_bias", **_GPT
    ),
    "gptj": Family(names=_OPEN, norms=1, head_bias=True, activation="activation_function", **_GPT),
    "granite": _LLAMA,
    "llama": _LLAMA,
    "ministral3": Family(head_dim=128),
    "mistral": Family(),
    "nemotron": Family(
        gated=False, layer_norm=True,
        qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias",
    ),
    "olmo2": Family(qk_norm="all", qkv_bias="attention_bias", out_bias="attention_bias"),
    "olmo3": Family(qk_norm="all", qkv_bias="attention_bias", out_bias="attention_bias"),
    "opt": Family(
        names={"intermediate_size": "ffn_dim"}, qkv_bias=True, out_bias=True, tied=True,
        positions="max_position_embeddings", more_positions=2,
        activation="activation_function", **_GPT,
    ),
    "phi": Family(norms=1, qkv_bias=True, out_bias=True, head_bias=True, **_GPT),
    "phi3": Family(fused_qkv=True, fused_gate=True),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(
        head_dim=128, qk_norm="head", qkv_bias="attention_bias", out_bias="attention_bias"
    ),
    "seed_oss": Family(
        head_dim=128, qkv_bias="attention_bias", out_bias="attention_out_bias", mlp_bias="mlp_bias"
    ),
    "smollm3": Family(
        tied=True, qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias"
    ),
    "stablelm": Family(layer_norm=True, qkv_bias="use_qkv_bias"),
    "starcoder2": Family(
        gated=False, layer_norm=True, tied=True,
        qkv_bias="use_bias", out_bias="use_bias", mlp_bias="use_bias",
    ),
}  # fmt: skip
"""Mixtures of experts, hybrids and models with layers of several sizes are not among them."""

_ON_BY_DEFAULT = {
    ("glm4", "attention_bias"),
    ("gpt_neox", "attention_bias"),
    ("starcoder2", "use_bias"),
    ("seed_oss", "attention_bias"),
}
_KEPT = {"gelu_new": 5, "gelu_fast": 5, "relu2": 3}
"""Numbers that an MLP of two weights keeps for each of its width, by activation; others 2."""


def is_set(family: str, setting: bool | str, config: Mapping[str, Any]) -> bool:
    """Whether a model has what its family may have."""
    if isinstance(setting, bool):
        return setting
    return bool(config.get(setting, (family, setting) in _ON_BY_DEFAULT))


def kept_by_mlp(family: Family, config: Mapping[str, Any]) -> int:
    """Numbers for each of its width: gate, silu(gate), up, their product; or before and after."""
    default = "gelu_new" if family.activation == "activation_function" else ""
    return 4 if family.gated else _KEPT.get(config.get(family.activation, default), 2)
