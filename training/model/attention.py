"""Attention that never crosses a document.

B rows, T tokens of a whole sequence, H heads of this rank, E numbers a head.
"""

from __future__ import annotations

from inspect import signature
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from training.data.documents import DocumentLayout
from training.model.flash_sinks import flash_with_sinks

ATTENTION_NAME = "entrodrop_documents"

_BLOCK = 256
"""Queries of a block where scores have a window or a cap."""
_WITHOUT_EFFECT = {
    "position_ids": "where documents start is in the layout; query and key are already rotated",
    "is_causal": "this attention is causal; a model that means otherwise says so with False",
    "use_cache": "there is no cache in training",
    "output_attentions": "what is returned beside the context, never the context",
}
"""Arguments of transformers' attention functions that may have any value, each with the reason."""


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
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    key_bias: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document, in the signature of transformers.

    Ulysses drops masks and lets sdpa see across documents; a layout that comes as a keyword
    passes through it untouched.

    Args:
        sliding_window: how many tokens of its document each sees, itself included; None or 0 for
            all before it.
        softcap: c of scores c tanh(x / c), as in Gemma 2; None or 0 for plain ones.
        s_aux: `[H]`, the sinks of gpt-oss: scores that take a part of the weights, for no value.
        key_bias: fp32 `[H, T]`, ALiBi: added to the scores of a key by its place in its document.
        others: whatever else a model hands to its attention.

    Returns:
        `[B, T, H, E]`, of values, and no attention weights.

    Raises:
        ValueError: for anything that would change the result and is not implemented here.
    """
    if document_layout is None:
        raise ValueError(
            "no document_layout: this model does not pass keyword arguments on to its attention"
        )
    if dropout:
        raise ValueError("dropout in attention is not supported; set model.disable_dropout: true")
    _refuse_other_attention(others | {"attention_mask": attention_mask})
    batch, num_heads, length, head_size = query_BHTE.shape
    # one stream of tokens: [B, H, T, E] -> [B * T, H, E]
    query, key, value = (
        x.transpose(1, 2).reshape(batch * length, x.shape[1], x.shape[-1])
        for x in (query_BHTE, key_BHTE, value_BHTE)
    )
    scores = _Scores(
        scaling or head_size**-0.5, sliding_window or None, softcap or None, s_aux, key_bias
    )
    is_of_flash = scores.softcap is None and key_bias is None
    has_flash = query.is_cuda and query.dtype != torch.float32 and is_of_flash
    attend = _flash if has_flash else _document_by_document
    width = value.shape[-1]
    if width != head_size:  # kernels without a T x T matrix take one size; zeros change no score
        size = max(head_size, width)
        query, key, value = (F.pad(x, (0, size - x.shape[-1])) for x in (query, key, value))
    context = attend(query, key, value, document_layout, scores)[..., :width]
    return context.reshape(batch, length, num_heads, width), None


class _Scores(NamedTuple):
    """How a query and a key become a score."""

    scale: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None
    key_bias: Tensor | None


def _refuse_other_attention(arguments: dict[str, Any]) -> None:
    """An argument that is set and that this attention would leave out."""
    for name, value in arguments.items():
        if name not in _WITHOUT_EFFECT and not (value is None or _is_off(value)):
            raise ValueError(
                f"the model's attention is given {name}, which this attention does not implement"
            )
    if arguments.get("is_causal") is False:
        raise ValueError("attention that is not causal is not supported")


def _is_off(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) and not value


def _flash(
    query: Tensor, key: Tensor, value: Tensor, layout: DocumentLayout, scores: _Scores
) -> Tensor:
    documents = (layout.boundaries_tensor, layout.max_tokens)
    before = -1 if scores.window is None else scores.window - 1
    if scores.sinks is not None:
        return flash_with_sinks(
            query, key, value, scores.sinks, documents=documents, scale=scores.scale, before=before
        )
    from torch.nn.attention.varlen import varlen_attn  # CUDA only

    ends, longest = documents
    how: dict[str, Any] = {"scale": scores.scale, "window_size": (before, 0)}  # before and after
    if key.shape[1] != query.shape[1]:
        if "enable_gqa" in signature(varlen_attn).parameters:
            how["enable_gqa"] = True
        else:  # before torch 2.12
            repeats = query.shape[1] // key.shape[1]
            key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    context = varlen_attn(query, key, value, ends, ends, longest, longest, **how)
    assert isinstance(context, Tensor)  # a tuple comes only with return_aux
    return context


def _document_by_document(
    query: Tensor, key: Tensor, value: Tensor, layout: DocumentLayout, scores: _Scores
) -> Tensor:
    """Exact, without a T x T mask: work and memory follow the documents' lengths."""
    lengths = [end - start for start, end in pairwise(layout.boundaries)]
    outputs = []
    for q, k, v in zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True):
        # [t, H, E] -> [1, H, t, E]
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        is_plain = scores.softcap is scores.sinks is scores.key_bias is None
        if not is_plain or (scores.window or q.shape[2]) < q.shape[2]:
            context = _by_blocks(q, k, v, scores)
        else:
            context = scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scores.scale, enable_gqa=k.shape[1] != q.shape[1]
            )
        outputs.append(context[0].transpose(0, 1))
    return torch.cat(outputs)


def _by_blocks(q: Tensor, k: Tensor, v: Tensor, scores: _Scores) -> Tensor:
    """`[1, H, t, E]`, a block of queries at a time, with the keys that these see and a mask."""
    length, outputs = q.shape[2], []
    window = scores.window or length
    for start in range(0, length, _BLOCK):
        first, end = max(0, start - window + 1), min(start + _BLOCK, length)
        rows = torch.arange(start, end, device=q.device)[:, None]
        columns = torch.arange(first, end, device=q.device)
        is_seen = (columns <= rows) & (columns > rows - window)
        block = (q[:, :, start:end], k[:, :, first:end], v[:, :, first:end])
        if scores.softcap or scores.sinks is not None:
            outputs.append(_by_weights(*block, is_seen, scores))
        else:
            outputs.append(
                scaled_dot_product_attention(
                    *block,
                    attn_mask=_as_mask(is_seen, scores.key_bias, first=first, like=q),
                    scale=scores.scale,
                    enable_gqa=k.shape[1] != q.shape[1],
                )
            )
    return torch.cat(outputs, dim=2)


def _as_mask(is_seen: Tensor, key_bias: Tensor | None, *, first: int, like: Tensor) -> Tensor:
    """Of queries up to the last key; biases relative to each query's own, small where it counts."""
    if key_bias is None:
        return is_seen
    num_queries, num_keys = is_seen.shape
    keys = key_bias[:, first : first + num_keys]
    relative = keys[:, None, :] - keys[:, num_keys - num_queries :, None]
    return relative.masked_fill(~is_seen, -torch.inf).to(like.dtype)


def _by_weights(q: Tensor, k: Tensor, v: Tensor, is_seen: Tensor, scores: _Scores) -> Tensor:
    """Attention with capped scores or with sinks, which torch's own kernels do not have."""
    assert scores.key_bias is None, "no family has ALiBi beside a softcap or sinks"
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    logits = q @ k.transpose(2, 3) * scores.scale
    if scores.softcap:
        logits = scores.softcap * torch.tanh(logits / scores.softcap)
    logits = logits.float().masked_fill(~is_seen, -torch.inf)
    if scores.sinks is not None:
        sinks = scores.sinks.float()[None, :, None, None].expand(*logits.shape[:3], 1)
        logits = torch.cat([logits, sinks], dim=-1)
    weights = logits.softmax(dim=-1)[..., : k.shape[2]]
    return weights.to(v.dtype) @ v


def register_attention() -> None:
    """Register `ATTENTION_NAME` with transformers, without Ulysses around it."""
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, document_attention)
