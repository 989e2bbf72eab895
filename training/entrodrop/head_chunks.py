"""Matrix products of an output layer, a chunk of tokens at a time.

N tokens, D hidden, V vocabulary, C tokens of one chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor


def weighted_rows(weights_N: Tensor, at_most: int | None) -> tuple[Tensor, Tensor]:
    """Places of rows with a weight and of those without, int64, each ascending.

    Args:
        at_most: how many weights are not zero, at most: the first part is as long, and nothing
            waits for a GPU. None if only the device knows.

    Raises:
        RuntimeError: when there are more; on a GPU at a later call.
    """
    is_zero_N = weights_N == 0.0
    if at_most is None:
        return (~is_zero_N).nonzero()[:, 0], is_zero_N.nonzero()[:, 0]
    rows_N = is_zero_N.byte().argsort(stable=True)
    weighted_M, others_M = rows_N[:at_most], rows_N[at_most:]
    torch._assert_async(is_zero_N[others_M].all(), "more rows have a weight than were announced")
    return weighted_M, others_M


class Logits:
    """Computes the logits chunk by chunk into the same memory."""

    def __init__(self, weight_VD: Tensor, bias_V: Tensor | None, chunk_tokens: int) -> None:
        self._weight_VD, self._bias_V = weight_VD, bias_V
        self._buffer_CV = weight_VD.new_empty(chunk_tokens, weight_VD.shape[0])

    def __call__(self, hidden_CD: Tensor) -> Tensor:
        out = self._buffer_CV[: hidden_CD.shape[0]]
        if self._bias_V is None:
            return torch.mm(hidden_CD, self._weight_VD.T, out=out)
        return torch.addmm(self._bias_V, hidden_CD, self._weight_VD.T, out=out)


class Gradients:
    """Of the head's inputs, added up chunk by chunk; None for a weight or bias that is frozen.

    Those of weight and bias are sums over all tokens, which bf16 would round at each chunk: they
    are added up in fp32, and rounded once.
    """

    def __init__(self, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> None:
        self._weight_VD, self._dtype = weight_VD, weight_VD.dtype
        self.hidden_ND = torch.zeros_like(hidden_ND)
        self._weight_sum_VD = _zero_sum(weight_VD)
        self._bias_sum_V = None if bias_V is None else _zero_sum(bias_V)

    def add(self, rows_C: Tensor, gradient_CV: Tensor, hidden_CD: Tensor) -> None:
        """`gradient_CV`: of the logits of `rows_C`."""
        self.hidden_ND[rows_C] = gradient_CV @ self._weight_VD
        if self._weight_sum_VD is not None:
            if self._dtype == torch.float32:
                self._weight_sum_VD.addmm_(gradient_CV.T, hidden_CD)
            else:
                self._weight_sum_VD += gradient_CV.T @ hidden_CD
        if self._bias_sum_V is not None:
            self._bias_sum_V += gradient_CV.sum(dim=0, dtype=torch.float32)

    @property
    def weight_VD(self) -> Tensor | None:
        """In the dtype of the weight."""
        return None if self._weight_sum_VD is None else self._weight_sum_VD.to(self._dtype)

    @property
    def bias_V(self) -> Tensor | None:
        """In the dtype of the bias, which is the weight's."""
        return None if self._bias_sum_V is None else self._bias_sum_V.to(self._dtype)


def _zero_sum(parameter: Tensor) -> Tensor | None:
    if not parameter.requires_grad:
        return None
    return torch.zeros_like(parameter, dtype=torch.float32)
