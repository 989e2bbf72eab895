"""Linear cross-entropy with entropy: both per token, without ever holding full logits.

N tokens, D hidden, V vocabulary, C tokens of one chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Numbers of one chunk: forward holds two such fp32 buffers, 2 * 2^23 * 4 bytes = 64 MiB.
_CHUNK_LOGITS = 1 << 23


def linear_cross_entropy_with_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    chunk_tokens: int | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each target and entropy of each prediction, in nats.

    Args:
        hidden: `[N, D]`, fp32, bf16 or fp16.
        weight: `[V, D]` of the same dtype.
        targets: int64 `[N]`; `ignore_index` marks positions without a target.
        chunk_tokens: tokens whose logits are held at a time; by default as many as fit twice
            into 64 MiB of fp32.
        label_smoothing: share of each target that is spread over the vocabulary, as in
            `torch.nn.functional.cross_entropy`; nll is then the smoothed loss.

    Returns:
        nll fp32 `[N]`, 0 where ignored, differentiable with any upstream gradient per token;
        entropy fp32 `[N]`, of every position, without gradient.

    The backward pass computes the logits again and leaves out rows whose upstream gradient is
    zero. Peak memory over the inputs: twice the fp32 logits of a chunk, and the gradients.
    """
    num_tokens, vocab_size = hidden.shape[0], weight.shape[0]
    chunk = chunk_tokens or max(1, _CHUNK_LOGITS // vocab_size)
    return _LinearCrossEntropy.apply(
        hidden, weight, targets, ignore_index, min(chunk, max(num_tokens, 1)), label_smoothing
    )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        ignore: int,
        chunk: int,
        smoothing: float,
    ) -> tuple[Tensor, Tensor]:
        nll_N = hidden_ND.new_empty(hidden_ND.shape[0], dtype=torch.float32)
        entropy_N = torch.empty_like(nll_N)
        for start in range(0, hidden_ND.shape[0], chunk):
            rows = slice(start, start + chunk)
            nll_N[rows], entropy_N[rows] = _chunk_statistics(
                hidden_ND[rows], weight_VD, targets_N[rows].clamp(min=0), smoothing
            )
        is_ignored_N = targets_N == ignore
        nll_N.masked_fill_(is_ignored_N, 0.0)
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, is_ignored_N)
        ctx.chunk, ctx.smoothing = chunk, smoothing
        ctx.mark_non_differentiable(entropy_N)
        return nll_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, targets_N, is_ignored_N = ctx.saved_tensors
        upstream_N = upstream[0].masked_fill(is_ignored_N, 0.0)
        rows_M = upstream_N.nonzero()[:, 0]  # a number of rows of ours alone; nothing collective
        grad_hidden_ND = torch.zeros_like(hidden_ND)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        for rows_C in rows_M.split(ctx.chunk):
            hidden_CD = hidden_ND[rows_C]
            grad_logits_CV = _chunk_grad_logits(
                hidden_CD, weight_VD, targets_N[rows_C], upstream_N[rows_C], ctx.smoothing
            )
            grad_hidden_ND[rows_C] = grad_logits_CV @ weight_VD
            if weight_VD.dtype == torch.float32:
                grad_weight_VD.addmm_(grad_logits_CV.T, hidden_CD)
            else:  # the sum over chunks stays in fp32
                grad_weight_VD += grad_logits_CV.T @ hidden_CD
        return grad_hidden_ND, grad_weight_VD.to(weight_VD.dtype), None, None, None, None


def _chunk_statistics(
    hidden_CD: Tensor, weight_VD: Tensor, targets_C: Tensor, smoothing: float
) -> tuple[Tensor, Tensor]:
    """nll = ln s - z_target and H = ln s - sum(z e^z) / s, with z = logits - max, s = sum e^z.

    Smoothed by a share a: (1 - a) nll + a (ln s - mean z).
    """
    shifted_CV = (hidden_CD @ weight_VD.T).float()
    shifted_CV -= shifted_CV.amax(dim=1, keepdim=True)
    exp_CV = shifted_CV.exp()
    total_C = exp_CV.sum(dim=1)
    log_total_C = total_C.log()
    nll_C = log_total_C - shifted_CV.gather(1, targets_C[:, None])[:, 0]
    if smoothing:
        nll_C = torch.lerp(nll_C, log_total_C - shifted_CV.mean(dim=1), smoothing)
    mean_shifted_C = exp_CV.mul_(shifted_CV).sum(dim=1) / total_C
    return nll_C, (log_total_C - mean_shifted_C).clamp_(min=0.0)  # rounding can go below 0


def _chunk_grad_logits(
    hidden_CD: Tensor,
    weight_VD: Tensor,
    targets_C: Tensor,
    upstream_C: Tensor,
    smoothing: float,
) -> Tensor:
    """d nll / d logits = (softmax - onehot(target)) * upstream, in the dtype of the weight.

    Smoothed by a share a, the target is (1 - a) onehot + a / V.
    """
    probs_CV = (hidden_CD @ weight_VD.T).float()
    # softmax in place: torch.softmax would hold a second buffer
    probs_CV.sub_(probs_CV.amax(dim=1, keepdim=True)).exp_()
    probs_CV.div_(probs_CV.sum(dim=1, keepdim=True))
    probs_CV[torch.arange(len(targets_C), device=targets_C.device), targets_C] -= 1.0 - smoothing
    if smoothing:
        probs_CV -= smoothing / probs_CV.shape[1]
    return probs_CV.mul_(upstream_C[:, None]).to(weight_VD.dtype)
