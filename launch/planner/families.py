"""What the layers of decoders are made of, by `model_type`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Mixture:
    """What a family calls the sizes of its experts, and which layers have some."""

    number: tuple[str, ...] = ("num_experts", "num_local_experts")
    """Names of one setting."""
    width: str = "moe_intermediate_size"
    shared: str | None = None
    """Setting with the width of an expert for all tokens."""
    num_shared: str | None = None
    """Setting with how many times as wide as the others it is."""
    shared_gate: bool = False
    bias: bool = False
    num_dense: int | None = None
    """First layers without, where `first_k_dense_replace` does not say; None where all have some or
    `decoder_sparse_step` says which."""


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
    usual_activation: str = "gelu_new"
    """Where the model does not say; of MLPs of two weights."""
    mixture: Mixture | None = None
    mixer: Literal["", "latent", "delta", "mamba", "mamba beside", "convolution", "sizes"] = ""
    """What layers have in place of llama's attention, or beside it."""
    query_gate: bool = False
    """Numbers as many as queries scale the attention's output."""
    sinks: bool = False
    qk_norm_if: str = ""
    """Setting without which there are no such norms."""
    unplanned: tuple[str, ...] = ()
    """Settings that add or remove weights which are not counted here."""


_ATTENTION: dict[str, Any] = {"qkv_bias": "attention_bias", "out_bias": "attention_bias"}
_LLAMA = Family(qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias")
_OPEN = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
}
_QWEN_MIXTURE = Mixture(shared="shared_expert_intermediate_size", shared_gate=True)
_QWEN_HYBRID: dict[str, Any] = {
    "head_dim": 256, "qk_norm": "head", "query_gate": True, "mixer": "delta", **_ATTENTION,
}  # fmt: skip
_DEEPSEEK = Mixture(number=("n_routed_experts",), num_shared="n_shared_experts")
_LOCAL = Mixture(number=("num_local_experts",), width="intermediate_size")
_GPT: dict[str, Any] = {"gated": False, "layer_norm": True, "mlp_bias": True}

FAMILIES: dict[str, Family] = {
    "bloom": Family(
        names={k: v for k, v in _OPEN.items() if k not in ("hidden_size", "intermediate_size")},
        fused_qkv=True, qkv_bias=True, out_bias=True, embedding_norm=True, tied=True,
        usual_activation="gelu", **_GPT,
    ),
    "cohere": Family(norms=1, tied=True, qk_norm="all", qk_norm_if="use_qk_norm", **_ATTENTION),
    "cohere2": Family(norms=1, tied=True, **_ATTENTION),
    "deepseek_v2": Family(
        mixture=replace(_DEEPSEEK, num_dense=0), mixer="latent", unplanned=("mlp_bias",),
    ),
    "deepseek_v3": Family(mixture=replace(_DEEPSEEK, num_dense=3), mixer="latent"),
    "exaone4": Family(qk_norm="head"),
    "falcon_h1": Family(mixer="mamba beside", mlp_bias="mlp_bias", **_ATTENTION),
    "gemma": Family(head_dim=256, tied=True, **_ATTENTION),
    "gemma2": Family(
        head_dim=256, norms=4, tied=True, qkv_bias="attention_bias", out_bias="attention_bias"
    ),
    "gemma3_text": Family(
        head_dim=256, norms=4, qk_norm="head", tied=True,
        qkv_bias="attention_bias", out_bias="attention_bias",
        usual={"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262_208},
    ),
    "gemma4_text": Family(
        norms=4, tied=True, head_dim=256, mixer="sizes", unplanned=("enable_moe_block",),
    ),
    "glm4": Family(norms=4, fused_gate=True, qkv_bias="attention_bias", head_dim=128),
    "glm4_moe": Family(
        mixture=replace(_DEEPSEEK, num_dense=1), qk_norm="head", qk_norm_if="use_qk_norm",
        qkv_bias="attention_bias",
    ),
    "glm4_moe_lite": Family(mixture=replace(_DEEPSEEK, num_dense=1), mixer="latent"),
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
        fused_qkv=True, usual_activation="gelu",
        qkv_bias="attention_bias", out_bias="attention_bias", **_GPT,
    ),
    "gpt_oss": Family(
        head_dim=64, sinks=True, mixture=replace(_LOCAL, bias=True), **_ATTENTION
    ),
    "gptj": Family(names=_OPEN, norms=1, head_bias=True, activation="activation_function", **_GPT),
    "granite": _LLAMA,
    "granitemoe": Family(mixture=_LOCAL, **_ATTENTION),
    "granitemoehybrid": Family(
        mixture=replace(_LOCAL, shared="shared_intermediate_size"), mixer="mamba", **_ATTENTION
    ),
    "granitemoeshared": Family(
        mixture=replace(_LOCAL, shared="shared_intermediate_size"), **_ATTENTION
    ),
    "lfm2": Family(qk_norm="head", tied=True, mixer="convolution"),
    "llama": _LLAMA,
    "ministral3": Family(head_dim=128),
    "mistral": Family(),
    "mixtral": Family(mixture=_LOCAL),
    "nemotron": Family(
        gated=False, layer_norm=True, usual_activation="relu2",
        qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias",
    ),
    "olmo2": Family(qk_norm="all", **_ATTENTION),
    "olmo3": Family(qk_norm="all", **_ATTENTION),
    "olmoe": Family(
        qk_norm="all", mixture=replace(Mixture(), width="intermediate_size"), **_ATTENTION
    ),
    "opt": Family(
        names={"intermediate_size": "ffn_dim"}, qkv_bias=True, out_bias=True, tied=True,
        positions="max_position_embeddings", more_positions=2,
        activation="activation_function", usual_activation="relu", **_GPT,
    ),
    "phi": Family(
        norms=1, qkv_bias=True, out_bias=True, head_bias=True, unplanned=("qk_layernorm",), **_GPT
    ),
    "phi3": Family(fused_qkv=True, fused_gate=True),
    "qwen2": Family(qkv_bias=True),
    "qwen2_moe": Family(qkv_bias="qkv_bias", mixture=_QWEN_MIXTURE),
    "qwen3": Family(
        head_dim=128, qk_norm="head", qkv_bias="attention_bias", out_bias="attention_bias"
    ),
    "qwen3_5_moe_text": Family(mixture=_QWEN_MIXTURE, **_QWEN_HYBRID),
    "qwen3_5_text": Family(**_QWEN_HYBRID),
    "qwen3_moe": Family(qk_norm="head", mixture=Mixture(), **_ATTENTION),
    "qwen3_next": Family(mixture=_QWEN_MIXTURE, **_QWEN_HYBRID),
    "seed_oss": Family(
        head_dim=128, qkv_bias="attention_bias", out_bias="attention_out_bias", mlp_bias="mlp_bias"
    ),
    "smollm3": Family(
        tied=True, qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias"
    ),
    "stablelm": Family(
        layer_norm=True, qkv_bias="use_qkv_bias",
        unplanned=("qk_layernorm", "use_parallel_residual"),
    ),
    "starcoder2": Family(
        gated=False, layer_norm=True, tied=True, usual_activation="gelu",
        qkv_bias="use_bias", out_bias="use_bias", mlp_bias="use_bias",
    ),
}  # fmt: skip
CARRY_STATES = ("delta", "mamba", "mamba beside", "convolution")
"""Mixers that go through whole documents, token by token."""

_ON_BY_DEFAULT = {
    ("glm4", "attention_bias"),
    ("gpt_neox", "attention_bias"),
    ("gpt_oss", "attention_bias"),
    ("qwen2_moe", "qkv_bias"),
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
    name = config.get(family.activation, family.usual_activation)
    return 4 if family.gated else _KEPT.get(name, 2)
