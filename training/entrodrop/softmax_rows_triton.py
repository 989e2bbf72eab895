"""`softmax_rows` as Triton kernels: each reads a chunk of logits once, in its own dtype.

C rows of a chunk, V vocabulary. One program a row; sums and exponentials in fp32. With
TRITON_INTERPRET=1 in the environment the kernels run on a CPU, slowly, for tests.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from training.entrodrop.softmax_rows import RowStatistics

_BLOCK_COLUMNS = 4096
_STATISTICS_COLUMNS = 2048  # 59 registers a thread on sm_90, half of those of 4096
_NUM_WARPS = 8
# Of a lane beyond the row, relative to any other: e^-1e4 is 0, and so is its product.
_NOTHING: tl.constexpr = tl.constexpr(-1e4)


def row_statistics(logits_CV: Tensor, targets_C: Tensor, *, softcap: float = 0.0) -> RowStatistics:
    """See `softmax_rows.row_statistics`."""
    num_rows, vocab_size = logits_CV.shape
    statistics_5C = torch.empty(5, num_rows, dtype=torch.float32, device=logits_CV.device)
    if num_rows:
        _statistics_kernel[(num_rows,)](
            logits_CV,
            logits_CV.stride(0),
            targets_C,
            statistics_5C,
            num_rows,
            vocab_size,
            softcap,
            HAS_SOFTCAP=bool(softcap),
            BLOCK=min(_STATISTICS_COLUMNS, triton.next_power_of_2(vocab_size)),
            num_warps=_NUM_WARPS,
        )
    return RowStatistics(*statistics_5C)


def row_gradient_(
    logits_CV: Tensor,
    targets_C: Tensor,
    statistics: RowStatistics,
    *,
    prob_scale_C: Tensor,
    target_scale_C: Tensor,
    uniform_C: Tensor,
    softcap: float = 0.0,
) -> None:
    """See `softmax_rows.row_gradient_`."""
    num_rows, vocab_size = logits_CV.shape
    factor_C = prob_scale_C * torch.exp(-statistics.log_total)
    if num_rows:
        _gradient_kernel[(num_rows,)](
            logits_CV,
            logits_CV.stride(0),
            targets_C,
            statistics.largest.contiguous(),
            factor_C,
            target_scale_C.contiguous(),
            uniform_C.contiguous(),
            vocab_size,
            softcap,
            HAS_SOFTCAP=bool(softcap),
            BLOCK=min(_BLOCK_COLUMNS, triton.next_power_of_2(vocab_size)),
            num_warps=_NUM_WARPS,
        )


@triton.jit
def _tanh(x):
    # of |x|, where e^(-2 |x|) cannot overflow
    small = tl.exp(-2.0 * tl.abs(x))
    size = (1.0 - small) / (1.0 + small)
    return tl.where(x < 0, -size, size)


@triton.jit
def _capped(x, softcap, HAS_SOFTCAP: tl.constexpr):
    if HAS_SOFTCAP:
        x = softcap * _tanh(x / softcap)
    return x


@triton.jit
def _statistics_kernel(
    logits_ptr,
    stride,
    targets_ptr,
    out_ptr,
    num_rows,
    vocab_size,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride
    first = _capped(tl.load(row_ptr).to(tl.float32), softcap, HAS_SOFTCAP)
    # Each of the BLOCK lanes keeps its own largest z, with y = z - largest, and its own sums; they
    # meet once, at the end. When a larger z comes, with d = old - new: y becomes y + d, so that
    # sum e^y -> e^d sum e^y  and  sum y e^y -> e^d (sum y e^y + d sum e^y).
    largest = tl.zeros((BLOCK,), dtype=tl.float32) + first
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    weighted = tl.zeros((BLOCK,), dtype=tl.float32)
    from_first = tl.zeros((BLOCK,), dtype=tl.float32)  # sum (z - z[0]): keeps digits of the mean
    for start in range(0, vocab_size, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        is_inside = columns < vocab_size
        logits = tl.load(row_ptr + columns, mask=is_inside, other=0.0).to(tl.float32)
        logits = _capped(logits, softcap, HAS_SOFTCAP)
        above = tl.where(is_inside, logits - largest, _NOTHING)
        is_larger = above > 0
        # of e^d and e^y one is 1
        exp = tl.exp(-tl.abs(above))
        weighted = tl.where(is_larger, exp * (weighted - above * total), weighted + exp * above)
        total = tl.where(is_larger, exp * total + 1.0, total + exp)
        from_first += tl.where(is_inside, logits - first, 0.0)
        largest = tl.where(is_larger, logits, largest)
    row_largest = tl.max(largest, axis=0)
    moved = largest - row_largest
    scale = tl.exp(moved)
    row_weighted = tl.sum(scale * (weighted + moved * total), axis=0)
    row_total = tl.sum(scale * total, axis=0)
    log_total = tl.log(row_total)
    target_logit = tl.load(row_ptr + tl.load(targets_ptr + row)).to(tl.float32)
    target_logit = _capped(target_logit, softcap, HAS_SOFTCAP)
    mean_logit = first + tl.sum(from_first, axis=0) / vocab_size
    tl.store(out_ptr + row, row_largest)
    tl.store(out_ptr + num_rows + row, log_total)
    tl.store(out_ptr + 2 * num_rows + row, tl.maximum(log_total - row_weighted / row_total, 0.0))
    tl.store(out_ptr + 3 * num_rows + row, log_total - (target_logit - row_largest))
    tl.store(out_ptr + 4 * num_rows + row, log_total - (mean_logit - row_largest))


@triton.jit
def _gradient_kernel(
    logits_ptr,
    stride,
    targets_ptr,
    largest_ptr,
    factor_ptr,
    target_scale_ptr,
    uniform_ptr,
    vocab_size,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride
    target = tl.load(targets_ptr + row)
    largest = tl.load(largest_ptr + row)
    factor = tl.load(factor_ptr + row)
    target_scale = tl.load(target_scale_ptr + row)
    uniform = tl.load(uniform_ptr + row)
    for start in range(0, vocab_size, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        is_inside = columns < vocab_size
        logits = tl.load(row_ptr + columns, mask=is_inside, other=0.0).to(tl.float32)
        capped = _capped(logits, softcap, HAS_SOFTCAP)
        gradient = tl.exp(capped - largest) * factor - uniform
        gradient = tl.where(columns == target, gradient - target_scale, gradient)
        if HAS_SOFTCAP:
            share = capped / softcap
            gradient = gradient * (1.0 - share * share)
        tl.store(row_ptr + columns, gradient.to(logits_ptr.dtype.element_ty), mask=is_inside)
