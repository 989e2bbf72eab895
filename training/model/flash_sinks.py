"""Flash attention with sinks on CUDA: torch's kernels, corrected by what a sink takes.

T tokens of all documents, H heads, E numbers a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def flash_with_sinks(
    query_THE: Tensor,
    key_THE: Tensor,
    value_THE: Tensor,
    sinks_H: Tensor,
    *,
    documents: tuple[Tensor, int],
    scale: float,
    before: int,
) -> Tensor:
    """Causal attention within documents whose weights sum to less than one, by a sink's share.

    Args:
        documents: int32 starts of all and the end, and the longest's number of tokens.
        before: tokens that each sees before itself; -1 for all.
    """
    context: Tensor = _FlashWithSinks.apply(
        query_THE, key_THE, value_THE, sinks_H, (documents, scale, before)
    )
    return context


def add_sinks(context_THE: Tensor, lse_HT: Tensor, sinks_H: Tensor) -> tuple[Tensor, Tensor]:
    """Context and log-sum-exp of scores, with one more score a head whose value is zero."""
    all_HT = torch.logaddexp(lse_HT, sinks_H.float()[:, None])
    share_TH = (lse_HT - all_HT).exp().T
    return (context_THE.float() * share_TH[..., None]).to(context_THE.dtype), all_HT


def grad_of_sinks(grad_THE: Tensor, context_THE: Tensor, lse_HT: Tensor, sinks_H: Tensor) -> Tensor:
    """Of context and log-sum-exp with the sinks in them."""
    product_HT = (grad_THE.float() * context_THE.float()).sum(-1).T
    share_HT = (sinks_H.float()[:, None] - lse_HT).exp()
    return -(share_HT * product_HT).sum(1).to(sinks_H.dtype)


class _FlashWithSinks(torch.autograd.Function):
    """The kernel's backward needs only context and log-sum-exp, whatever is summed in them."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, how: Any
    ) -> Tensor:
        (ends, longest), scale, before = how
        lengths = (ends, ends, longest, longest)
        context, lse, *random = torch.ops.aten._flash_attention_forward(
            query, key, value, *lengths, 0.0, before < 0, False, scale=scale,
            window_size_left=before, window_size_right=0,
        )  # fmt: skip
        context, lse = add_sinks(context, lse, sinks)
        ctx.save_for_backward(query, key, value, sinks, context, lse, ends, *random[:2])
        ctx.how = (longest, scale, before)
        return context

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, sinks, context, lse, ends, *random = ctx.saved_tensors
        longest, scale, before = ctx.how
        grad = grads[0].contiguous()
        found = torch.ops.aten._flash_attention_backward(
            grad, query, key, value, context, lse, ends, ends, longest, longest, 0.0, before < 0,
            *random, scale=scale, window_size_left=before, window_size_right=0,
        )  # fmt: skip
        return (*found, grad_of_sinks(grad, context, lse, sinks), None)
