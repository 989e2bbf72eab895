"""Attention of older families, whose code asks no registered attention or hands it no keywords.

H heads, T tokens of the longest document.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from training.model.attention import ATTENTION_NAME
from training.model.inputs import ModelInputs

_TABLES = {
    "falcon": ("FALCON_ATTENTION_CLASSES", "FalconAttention"),
    "gpt_neo": ("GPT_NEO_ATTENTION_CLASSES", "GPTNeoSelfAttention"),
}
"""Tables of attentions by name in the code of families, and the plain one in each."""


def allow_construction(config: PretrainedConfig) -> None:
    """Let transformers build the model with our attention's name, if its family has a table."""
    family = config.get_text_config().model_type
    if family in _TABLES:
        code = import_module(f"transformers.models.{family}.modeling_{family}")
        table, plain = (getattr(code, name) for name in _TABLES[family])
        table[ATTENTION_NAME] = plain  # `OlderAttention` replaces its forward


class OlderAttention:
    """Gives the attention modules of such a model what the model itself does not hand on."""

    def __init__(self, lm: PreTrainedModel) -> None:
        self._keywords: dict[str, Any] = {}
        self._key_bias: Callable[..., Tensor] | None = None
        modules = [each for each in lm.base_model.modules() if type(each).__name__ in _FORWARDS]
        for module in modules:
            name = type(module).__name__
            if (forward := _FORWARDS[name]) is not None:
                module.forward = MethodType(forward, module)
            module.register_forward_pre_hook(self._add_keywords, with_kwargs=True)
            self._key_bias = _KEY_BIASES.get(name)
        self._config = lm.config.get_text_config()
        if self._config.model_type == "mpt":
            lm.base_model.register_forward_pre_hook(_add_mask, with_kwargs=True)

    def begin(self, inputs: ModelInputs) -> None:
        """Set the documents of the coming forward pass."""
        layout = inputs.documents
        self._keywords = {"document_layout": layout, "position_ids": inputs.position_ids_BS}
        if self._key_bias is not None and getattr(self._config, "alibi", True):
            positions_T = torch.arange(layout.max_tokens, device=layout.boundaries_tensor.device)
            self._keywords["key_bias"] = self._key_bias(self._config, positions_T)

    def _add_keywords(self, module: nn.Module, args: Any, keywords: dict[str, Any]) -> Any:
        return args, keywords | self._keywords


def _add_mask(module: nn.Module, args: Any, keywords: dict[str, Any]) -> Any:
    """MPT takes a mask of four dimensions as it is, and fails without one; it goes nowhere."""
    return args, keywords | {"attention_mask": torch.zeros(1, 1, 1, 1)}


def _attend(module: nn.Module, *states: Tensor, **keywords: Any) -> Tensor:
    """`[B, S, H * E]` of queries, keys and values `[B, H, S, E]`."""
    context, _ = ALL_ATTENTION_FUNCTIONS[ATTENTION_NAME](module, *states, None, **keywords)
    return context.flatten(2)


def _bloom(
    self: Any, hidden: Tensor, residual: Tensor, alibi: Tensor, attention_mask: Any, **given: Any
) -> tuple[Tensor, None]:
    states = self._reshape(self.query_key_value(hidden))
    drop = self.attention_dropout.p if self.training else 0.0
    context = _attend(self, *states, scaling=self.inv_norm_factor, dropout=drop, **_ours(given))
    return residual + dropout(self.dense(context), self.hidden_dropout, self.training), None


def _falcon(
    self: Any, hidden: Tensor, alibi: Tensor | None, attention_mask: Any, **given: Any
) -> tuple[Tensor, None]:
    split = self._split_heads(self.query_key_value(hidden))
    query, key, value = (x.transpose(1, 2) for x in split)
    drop = 0.0
    if alibi is None:
        rotate = import_module(type(self).__module__).apply_rotary_pos_emb
        query, key = rotate(query, key, *given["position_embeddings"])
    elif self.training:  # only then does its own code drop weights
        drop = self.attention_dropout.p
    scaling = self.inv_norm_factor
    context = _attend(self, query, key, value, scaling=scaling, dropout=drop, **_ours(given))
    return self.dense(context), None


def _gpt_neo(self: Any, hidden: Tensor, **given: Any) -> tuple[Tensor, None]:
    states = (
        self._split_heads(project(hidden), self.num_heads, self.head_dim)
        for project in (self.q_proj, self.k_proj, self.v_proj)
    )
    window = self.config.window_size if self.attention_type == "local" else None
    drop = self.attn_dropout.p if self.training else 0.0
    context = _attend(
        self, *states, scaling=1.0, sliding_window=window, dropout=drop, **_ours(given)
    )
    return self.resid_dropout(self.out_proj(context)), None


def _mpt(self: Any, hidden: Tensor, **given: Any) -> tuple[Tensor, None]:
    mixed = self.Wqkv(hidden)
    if self.clip_qkv:
        mixed = mixed.clamp(min=-self.clip_qkv, max=self.clip_qkv)
    states = (x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for x in mixed.chunk(3, dim=2))
    drop = self.attn_dropout_p if self.training else 0.0
    context = _attend(self, *states, scaling=self.softmax_scale, dropout=drop, **_ours(given))
    return self.out_proj(context), None


def _xglm(self: Any, hidden: Tensor, **given: Any) -> tuple[Tensor, None]:
    states = (
        project(hidden).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        for project in (self.q_proj, self.k_proj, self.v_proj)
    )
    drop = self.dropout if self.training else 0.0
    context = _attend(self, *states, scaling=self.scaling, dropout=drop, **_ours(given))
    return self.out_proj(context), None


def _ours(given: dict[str, Any]) -> dict[str, Any]:
    """Without what has been used, and masks and caches that are none."""
    names = ("document_layout", "position_ids", "key_bias")
    return {name: given[name] for name in names if name in given}


_FORWARDS: dict[str, Callable[..., Any] | None] = {
    "StableLmAttention": None,
    "NemotronAttention": None,
    "BloomAttention": _bloom,
    "FalconAttention": _falcon,
    "GPTNeoSelfAttention": _gpt_neo,
    "MptAttention": _mpt,
    "XGLMAttention": _xglm,
}
"""By class; those with None need keywords alone."""


def _slopes(num_heads: int) -> list[float]:
    """ALiBi's, of Bloom and Falcon: those of the next lower power of two, then others between."""
    power = 2 ** math.floor(math.log2(num_heads))
    own = [2 ** (-8 * n / power) for n in range(1, power + 1)]
    between = [2 ** (-4 * n / power) for n in range(1, 2 * (num_heads - power) + 1, 2)]
    return own + between


def _bloom_bias(config: PretrainedConfig, positions_T: Tensor) -> Tensor:
    slopes_H = torch.tensor(_slopes(config.num_attention_heads), device=positions_T.device)
    return slopes_H[:, None] * positions_T


def _falcon_bias(config: PretrainedConfig, positions_T: Tensor) -> Tensor:
    """It rounds them to bf16, whatever its own dtype, and scales them as it does the scores."""
    slopes_H = torch.tensor(_slopes(config.num_attention_heads), device=positions_T.device)
    bias_HT = (slopes_H.bfloat16()[:, None] * positions_T).float()
    return bias_HT / math.sqrt(config.hidden_size // config.num_attention_heads)


def _mpt_bias(config: PretrainedConfig, positions_T: Tensor) -> Tensor:
    """Slopes of the next higher power of two; every second of them first."""
    num_heads = config.num_attention_heads
    power = 2 ** math.ceil(math.log2(num_heads))
    slopes = [2 ** (-8 * n / power) for n in range(1, power + 1)]
    if power != num_heads:
        slopes = (slopes[1::2] + slopes[::2])[:num_heads]
    return torch.tensor(slopes, device=positions_T.device)[:, None] * positions_T


_KEY_BIASES = {
    "BloomAttention": _bloom_bias,
    "FalconAttention": _falcon_bias,
    "MptAttention": _mpt_bias,
}
