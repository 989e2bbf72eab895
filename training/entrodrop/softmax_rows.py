"""Statistics and gradient of rows of logits, by torch; `softmax_rows_triton` does the same on CUDA.

C rows of a chunk, V vocabulary. With a softcap c the logits are z = c tanh(x / c) of the matrix
product's x, as in Gemma 2 (arXiv 2408.00118, section 2); without one, c = 0, they are x itself.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Numbers of a block of rows: its fp32 copies, 2 MiB each, stay in a core's cache.
_BLOCK_LOGITS = 1 << 19


class RowStatistics(NamedTuple):
    """Of each row of logits z, fp32 `[C]`."""

    largest: Tensor
    """max z: kept separately, since only sums of e^(z - max z) keep all their digits."""
    log_total: Tensor
    """ln sum e^(z - max z)."""
    entropy: Tensor
    """- sum p ln p in nats, p = softmax(z); never below 0."""
    target_nll: Tensor
    """- ln p of the target."""
    mean_nll: Tensor
    """- ln p, the mean over the vocabulary."""


def row_statistics(logits_CV: Tensor, targets_C: Tensor, *, softcap: float = 0.0) -> RowStatistics:
    """H = ln s - sum(y e^y) / s, with y = z - max z and s = sum e^y.

    Args:
        logits_CV: x, of any floating dtype; not changed.
        targets_C: int64, each in [0, V).
        softcap: c, or 0 for none.
    """
    blocks = [
        _block_statistics(logits, targets, softcap)
        for logits, targets in _blocks_of_rows(logits_CV, targets_C)
    ]
    return RowStatistics(*(torch.cat(column) for column in zip(*blocks, strict=True)))


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
    """Replace x by `(softmax(z) * prob_scale - onehot(target) * target_scale - uniform) dz/dx`.

    Args:
        logits_CV: x, changed in place; any floating dtype; computed in fp32, rounded once.
        targets_C: int64, each in [0, V).
        statistics: of the same logits; only `largest` and `log_total` are read.
        prob_scale_C, target_scale_C, uniform_C: fp32.
        softcap: c, or 0 for none: dz/dx = 1 - (z / c)^2, or 1.
    """
    factor_C = prob_scale_C * torch.exp(-statistics.log_total)
    columns = (statistics.largest, factor_C, target_scale_C, uniform_C)
    for logits, targets, *scales in _blocks_of_rows(logits_CV, targets_C, *columns):
        largest, factor, target_scale, uniform = (scale[:, None] for scale in scales)
        gradient = logits if logits.dtype == torch.float32 else logits.float()
        slope = _cap_(gradient, softcap)
        gradient.sub_(largest).exp_().mul_(factor).sub_(uniform)
        gradient.scatter_add_(1, targets[:, None], -target_scale)
        if slope is not None:
            gradient.mul_(slope)
        if gradient is not logits:
            logits.copy_(gradient)


def _cap_(logits: Tensor, softcap: float) -> Tensor | None:
    """Replace x by z; returns dz/dx, None where it is 1."""
    if not softcap:
        return None
    share = logits.div_(softcap).tanh_()
    slope = 1.0 - share.square()
    logits.mul_(softcap)
    return slope


def _block_statistics(logits: Tensor, targets: Tensor, softcap: float) -> RowStatistics:
    if softcap:
        logits = torch.tanh(logits.float() / softcap).mul_(softcap)
    logits = logits.float()
    largest = logits.amax(dim=1, keepdim=True)
    shifted = logits - largest
    exp = shifted.exp()
    total = exp.sum(dim=1)
    log_total = total.log()
    mean_shifted = exp.mul_(shifted).sum(dim=1) / total
    return RowStatistics(
        largest=largest[:, 0],
        log_total=log_total,
        entropy=(log_total - mean_shifted).clamp_(min=0.0),  # rounding can go below 0
        target_nll=log_total - shifted.gather(1, targets[:, None])[:, 0],
        mean_nll=log_total - shifted.mean(dim=1),
    )


def _blocks_of_rows(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    rows = max(1, _BLOCK_LOGITS // tensors[0].shape[1])
    return list(zip(*(tensor.split(rows) for tensor in tensors), strict=True))
