"""Linear cross-entropy with entropy: both per token, without ever holding full logits.

N tokens, D hidden, V vocabulary, C tokens of one chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from training.entrodrop import softmax_rows
from training.entrodrop.head_chunks import Gradients, Logits, weighted_rows
from training.entrodrop.kernels import can_compile_kernels
from training.entrodrop.softmax_rows import RowStatistics

# Logits of one chunk, the only large buffer: 2^25 * 4 bytes = 128 MiB in fp32. A matrix product of
# fewer tokens is bound by reading the weight from memory; on a GPU already one of fewer than a
# thousand, and its kernels fill it with a program for each row.
_CHUNK_LOGITS = 1 << 25
_CUDA_CHUNK_TOKENS = 1024


def linear_cross_entropy_with_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    chunk_tokens: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    max_weighted: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each target and entropy of each prediction, in nats.

    Args:
        hidden: `[N, D]`, fp32, bf16 or fp16.
        weight: `[V, D]` of the same dtype.
        targets: int64 `[N]`; `ignore_index` marks positions without a target.
        bias: `[V]` of the same dtype, or None.
        chunk_tokens: tokens whose logits are held at a time; by default 1,024 on CUDA, elsewhere
            as many as fit into 128 MiB of fp32.
        label_smoothing: share of each target that is spread over the vocabulary, as in
            `torch.nn.functional.cross_entropy`; nll is then the smoothed loss.
        z_loss: coefficient of `(ln sum e^logits)^2`, which is added to nll (Chowdhery et al.:
            PaLM, 2022, section 5).
        softcap: c of logits c tanh(x / c) (Gemma 2, 2024, section 2); 0 for plain ones.
        max_weighted: how many tokens have an upstream gradient that is not zero, at most; the
            backward pass counts them where None, and the host then waits for a GPU.

    Returns:
        nll fp32 `[N]`, 0 where ignored, differentiable with any upstream gradient per token;
        entropy fp32 `[N]`, of every position, without gradient.

    Two passes: the backward pass computes the logits again, and leaves out rows whose upstream
    gradient is zero. Memory beyond the inputs: the logits of a chunk, and the gradients.
    """
    chunk_tokens = _chunk(chunk_tokens, hidden, weight)
    terms = _Terms(ignore_index, chunk_tokens, label_smoothing, z_loss, softcap, max_weighted)
    nll, entropy = _TwoPasses.apply(hidden, weight, bias, targets, terms)
    return nll, entropy


def weighted_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    token_weights: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    chunk_tokens: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    max_weighted: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in one pass, for token weights known in advance: gradients come with the loss.

    Args:
        token_weights: fp32 `[N]`, the factor of each token's nll in the loss.
        max_weighted: how many of them are not zero, at most; None as above.
        hidden, weight, targets, bias, ignore_index, chunk_tokens, label_smoothing, z_loss, softcap:
            as above.

    Returns:
        loss fp32, `sum(token_weights * nll)`, the only one that is differentiable; nll and
        entropy, fp32 `[N]`.

    Logits are computed once: three matrix products where two passes take four. From forward to
    backward it holds the gradients of `hidden` and `weight`, in their own dtypes.
    """
    chunk_tokens = _chunk(chunk_tokens, hidden, weight)
    terms = _Terms(ignore_index, chunk_tokens, label_smoothing, z_loss, softcap, max_weighted)
    loss, nll, entropy = _OnePass.apply(hidden, weight, bias, targets, token_weights, terms)
    return loss, nll, entropy


class _Terms(NamedTuple):
    """The terms of a token's loss, how many tokens are computed at a time, how many learnt."""

    ignore_index: int
    chunk_tokens: int
    label_smoothing: float
    z_loss: float
    softcap: float
    max_weighted: int | None


def _chunk(chunk_tokens: int | None, hidden_ND: Tensor, weight_VD: Tensor) -> int:
    by_device = _CUDA_CHUNK_TOKENS if hidden_ND.is_cuda else _CHUNK_LOGITS // weight_VD.shape[0]
    chunk_tokens = chunk_tokens or by_device
    return max(1, min(chunk_tokens, hidden_ND.shape[0]))


class _TwoPasses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        terms: _Terms,
    ) -> tuple[Tensor, Tensor]:
        statistics_N = _empty_statistics(hidden_ND)
        logits_of = Logits(weight_VD, bias_V, terms.chunk_tokens)
        for start in range(0, hidden_ND.shape[0], terms.chunk_tokens):
            rows = slice(start, start + terms.chunk_tokens)
            logits_CV = logits_of(hidden_ND[rows])
            _keep(statistics_N, rows, _statistics(logits_CV, targets_N[rows], terms))
        is_ignored_N = targets_N == terms.ignore_index
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, is_ignored_N, *statistics_N)
        ctx.terms = terms
        ctx.mark_non_differentiable(statistics_N.entropy)
        return _nll(statistics_N, terms).masked_fill_(is_ignored_N, 0.0), statistics_N.entropy

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, targets_N, is_ignored_N, *statistics = ctx.saved_tensors
        statistics_N = RowStatistics(*statistics)
        upstream_N = upstream[0].masked_fill(is_ignored_N, 0.0)
        gradients = Gradients(hidden_ND, weight_VD, bias_V)
        logits_of = Logits(weight_VD, bias_V, ctx.terms.chunk_tokens)
        # depends on this rank's rows alone; nothing collective
        rows_M, _ = weighted_rows(upstream_N, ctx.terms.max_weighted)
        for rows_C in rows_M.split(ctx.terms.chunk_tokens):
            hidden_CD = hidden_ND[rows_C]
            logits_CV = logits_of(hidden_CD)
            statistics_C = RowStatistics(*(column[rows_C] for column in statistics_N))
            _logits_to_gradient_(
                logits_CV, targets_N[rows_C], statistics_C, upstream_N[rows_C], ctx.terms
            )
            gradients.add(rows_C, logits_CV, hidden_CD)
        return gradients.hidden_ND, gradients.weight_VD, gradients.bias_V, None, None


class _OnePass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        token_weights_N: Tensor,
        terms: _Terms,
    ) -> tuple[Tensor, Tensor, Tensor]:
        statistics_N = _empty_statistics(hidden_ND)
        is_ignored_N = targets_N == terms.ignore_index
        token_weights_N = token_weights_N.float().masked_fill(is_ignored_N, 0.0)
        gradients = Gradients(hidden_ND, weight_VD, bias_V)
        logits_of = Logits(weight_VD, bias_V, terms.chunk_tokens)
        weighted_M, others_M = weighted_rows(token_weights_N, terms.max_weighted)
        for rows_C in weighted_M.split(terms.chunk_tokens):
            hidden_CD, targets_C = hidden_ND[rows_C], targets_N[rows_C]
            logits_CV = logits_of(hidden_CD)
            statistics_C = _statistics(logits_CV, targets_C, terms)
            _keep(statistics_N, rows_C, statistics_C)
            _logits_to_gradient_(logits_CV, targets_C, statistics_C, token_weights_N[rows_C], terms)
            gradients.add(rows_C, logits_CV, hidden_CD)
        for rows_C in others_M.split(terms.chunk_tokens):
            logits_CV = logits_of(hidden_ND[rows_C])
            _keep(statistics_N, rows_C, _statistics(logits_CV, targets_N[rows_C], terms))
        nll_N = _nll(statistics_N, terms).masked_fill_(is_ignored_N, 0.0)
        ctx.save_for_backward(gradients.hidden_ND, gradients.weight_VD, gradients.bias_V)
        ctx.mark_non_differentiable(nll_N, statistics_N.entropy)
        return token_weights_N @ nll_N, nll_N, statistics_N.entropy

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        # In place: a copy would double them. torch therefore refuses a second backward.
        scaled = (None if grad is None else grad.mul_(upstream[0]) for grad in ctx.saved_tensors)
        return *scaled, None, None, None


def _empty_statistics(hidden_ND: Tensor) -> RowStatistics:
    num_tokens = hidden_ND.shape[0]
    return RowStatistics(
        *(hidden_ND.new_empty(num_tokens, dtype=torch.float32) for _ in RowStatistics._fields)
    )


def _keep(statistics_N: RowStatistics, rows: Tensor | slice, statistics_C: RowStatistics) -> None:
    for whole, part in zip(statistics_N, statistics_C, strict=True):
        whole[rows] = part


def _nll(statistics: RowStatistics, terms: _Terms) -> Tensor:
    """(1 - a) nll + a mean nll + b (ln sum e^z)^2, with smoothing a and z-loss b."""
    nll = torch.lerp(statistics.target_nll, statistics.mean_nll, terms.label_smoothing)
    if terms.z_loss:
        nll += terms.z_loss * (statistics.largest + statistics.log_total).square()
    return nll


def _statistics(logits_CV: Tensor, targets_C: Tensor, terms: _Terms) -> RowStatistics:
    statistics: RowStatistics = _rows_on(logits_CV).row_statistics(
        logits_CV, targets_C.clamp(0), softcap=terms.softcap
    )
    return statistics


def _logits_to_gradient_(
    logits_CV: Tensor,
    targets_C: Tensor,
    statistics_C: RowStatistics,
    upstream_C: Tensor,
    terms: _Terms,
) -> None:
    """d nll / d z = (p (1 + 2 b ln sum e^z) - (1 - a) onehot - a / V) * upstream, in place."""
    smoothing = terms.label_smoothing
    log_sum_C = statistics_C.largest + statistics_C.log_total
    _rows_on(logits_CV).row_gradient_(
        logits_CV,
        targets_C.clamp(0),
        statistics_C,
        prob_scale_C=upstream_C * (1.0 + 2.0 * terms.z_loss * log_sum_C),
        target_scale_C=upstream_C * (1.0 - smoothing),
        uniform_C=upstream_C * (smoothing / logits_CV.shape[1]),
        softcap=terms.softcap,
    )


def _rows_on(tensor: Tensor) -> Any:
    """The implementation for the device of a tensor: Triton's on CUDA, torch's elsewhere."""
    if tensor.is_cuda and can_compile_kernels():
        from training.entrodrop import softmax_rows_triton

        return softmax_rows_triton
    return softmax_rows
