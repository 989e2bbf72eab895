"""Cross-entropy to a teacher's predictions, without ever holding full logits of either.

N tokens, D hidden, V vocabulary, C tokens of one chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from training.entrodrop.head_chunks import Gradients, Logits

# Numbers of a chunk: a few fp32 copies of it are held at a time, 32 MiB each.
_CHUNK_LOGITS = 1 << 23


class OutputLayer(NamedTuple):
    """What makes logits of hidden states."""

    weight_VD: Tensor
    bias_V: Tensor | None = None


def soft_cross_entropy(
    hidden_ND: Tensor,
    layer: OutputLayer,
    teacher_hidden_ND: Tensor,
    teacher_layer: OutputLayer,
    token_weights_N: Tensor,
    *,
    softcap: float = 0.0,
) -> Tensor:
    """`sum_n w_n sum_v q_nv (-ln p_nv)`, p of the student and q of the teacher.

    Its gradient is that of the KL divergence from q to p (Hinton et al., arXiv 1503.02531, at
    temperature 1).

    Args:
        hidden_ND, teacher_hidden_ND: fp32, bf16 or fp16; the weights have the same dtype.
        token_weights_N: fp32 w; tokens of weight 0 cost nothing.
        softcap: of the logits of both, 0 for none.

    Returns:
        fp32 scalar, differentiable with respect to the student's hidden states, weight and bias.
        The gradients are computed with it, and held until backward.
    """
    loss: Tensor = _SoftCrossEntropy.apply(
        hidden_ND, *layer, teacher_hidden_ND, *teacher_layer, token_weights_N, softcap
    )
    return loss


class _SoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        teacher_hidden_ND: Tensor,
        teacher_weight_VD: Tensor,
        teacher_bias_V: Tensor | None,
        token_weights_N: Tensor,
        softcap: float,
    ) -> Tensor:
        chunk = max(1, min(_CHUNK_LOGITS // weight_VD.shape[0], hidden_ND.shape[0]))
        student = Logits(weight_VD, bias_V, chunk)
        teacher = Logits(teacher_weight_VD, teacher_bias_V, chunk)
        gradients = Gradients(hidden_ND, weight_VD, bias_V)
        loss = hidden_ND.new_zeros((), dtype=torch.float64)
        for rows_C in token_weights_N.nonzero()[:, 0].split(chunk):
            hidden_CD, weights_C = hidden_ND[rows_C], token_weights_N[rows_C].float()
            q_CV = _capped(teacher(teacher_hidden_ND[rows_C]).float(), softcap)[0].softmax(dim=1)
            logits_CV, slope_CV = _capped(student(hidden_CD).float(), softcap)
            log_p_CV = logits_CV.log_softmax(dim=1)
            loss -= ((q_CV * log_p_CV).sum(dim=1) * weights_C).double().sum()
            gradient_CV = log_p_CV.exp_().sub_(q_CV).mul_(weights_C[:, None])
            if slope_CV is not None:
                gradient_CV.mul_(slope_CV)
            gradients.add(rows_C, gradient_CV.to(hidden_ND.dtype), hidden_CD)
        ctx.save_for_backward(gradients.hidden_ND, gradients.weight_VD, gradients.bias_V)
        return loss.float()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if grad is None else grad.mul_(upstream[0]) for grad in ctx.saved_tensors)
        return *scaled, None, None, None, None, None


def _capped(logits: Tensor, softcap: float) -> tuple[Tensor, Tensor | None]:
    """z = c tanh(x / c), and dz/dx; None where it is 1."""
    if not softcap:
        return logits, None
    share = torch.tanh(logits / softcap)
    return share * softcap, 1.0 - share.square()
