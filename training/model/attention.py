"""Attention that never crosses a document, alone and as the core of Ulysses.

B rows, T tokens of a whole sequence, H heads of this rank, E numbers a head.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from training.data.documents import DocumentLayout

ATTENTION_NAME = "entrodrop_documents"


def document_attention(
    module: nn.Module,
    query_BHTE: Tensor,
    key_BHTE: Tensor,
    value_BHTE: Tensor,
    attention_mask: Tensor | None,
    *,
    document_layout: DocumentLayout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document, in the signature of transformers.

    Ulysses drops masks and lets sdpa see across documents; a layout that comes as a keyword
    passes through it untouched.

    Returns:
        `[B, T, H, E]` and no attention weights.
    """
    if document_layout is None:
        raise ValueError(
            "no document_layout: this model does not pass keyword arguments on to its attention"
        )
    if dropout:
        raise ValueError("attention_dropout is not supported; set it to 0 in the model's config")
    batch, num_heads, length, head_size = query_BHTE.shape
    # one stream of tokens: [B, H, T, E] -> [B * T, H, E]
    query, key, value = (
        x.transpose(1, 2).reshape(batch * length, x.shape[1], head_size)
        for x in (query_BHTE, key_BHTE, value_BHTE)
    )
    attend = _flash if query.is_cuda and query.dtype != torch.float32 else _document_by_document
    return attend(query, key, value, document_layout, scaling).view(
        batch, length, num_heads, head_size
    ), None


def _flash(
    query: Tensor, key: Tensor, value: Tensor, layout: DocumentLayout, scaling: float | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # CUDA only

    if key.shape[1] != query.shape[1]:
        repeats = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    ends, longest = layout.boundaries_tensor, layout.max_tokens
    context = varlen_attn(
        query, key, value, ends, ends, longest, longest, scale=scaling, window_size=(-1, 0)
    )
    assert isinstance(context, Tensor)  # a tuple comes only with return_aux
    return context


def _document_by_document(
    query: Tensor, key: Tensor, value: Tensor, layout: DocumentLayout, scaling: float | None
) -> Tensor:
    """Exact, without a T x T mask: work and memory follow the documents' lengths."""
    lengths = [end - start for start, end in pairwise(layout.boundaries)]
    outputs = []
    for q, k, v in zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True):
        # [t, H, E] -> [1, H, t, E]
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        context = scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, enable_gqa=k.shape[1] != q.shape[1]
        )
        outputs.append(context[0].transpose(0, 1))
    return torch.cat(outputs)


def register_attention() -> None:
    """Register `ATTENTION_NAME` with transformers, without Ulysses around it."""
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, document_attention)


def shard_attention(
    model: PreTrainedModel, *, sp_size: int, micro_batch_samples: int, sequence_tokens: int
) -> Any | None:
    """Put Ulysses around the attention of `model`: heads are exchanged for sequence shards.

    Returns:
        DeepSpeed's model-parallel unit for `deepspeed.initialize(mpu=...)`, None without shards.

    Raises:
        ValueError: when heads cannot be split among `sp_size` ranks.

    Source: `deepspeed/runtime/sequence_parallel/ulysses_sp.py`, `UlyssesSPAttentionHF`.
    """
    if sp_size == 1:
        return None
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    return UlyssesSPAttentionHF.register_with_transformers(
        model_name_or_path=model,
        core_attn_implementation=ATTENTION_NAME,
        sequence_parallel_size=sp_size,
        micro_batch_size=micro_batch_samples,
        seq_length=sequence_tokens,
        seq_length_is_variable=False,
    )
