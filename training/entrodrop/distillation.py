"""Cross-entropy to a teacher's predictions, without ever holding full logits of either.

N tokens, D hidden, V vocabulary, C tokens of one chunk; K likeliest tokens, J = K + 1 with all
others as one.
"""

from __future__ import annotations

from collections.abc import Callable
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


class TopK(NamedTuple):
    """The likeliest tokens of predictions; dimensions before the last are those of the tokens."""

    ids_NK: Tensor
    """int32, each once."""
    log_probs_NJ: Tensor
    """Any floating dtype, nats; the last is that of all other tokens together."""


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
    teacher = Logits(*teacher_layer, _chunk_of(hidden_ND, layer))

    def of_chunk(rows_C: Tensor, logits_CV: Tensor) -> tuple[Tensor, Tensor]:
        q_CV = _capped(teacher(teacher_hidden_ND[rows_C]).float(), softcap)[0].softmax(dim=1)
        log_p_CV = logits_CV.log_softmax(dim=1)
        return -(q_CV * log_p_CV).sum(dim=1), log_p_CV.exp_().sub_(q_CV)

    loss: Tensor = _ChunkedLoss.apply(hidden_ND, *layer, token_weights_N, softcap, of_chunk)
    return loss


def top_k_cross_entropy(
    hidden_ND: Tensor,
    layer: OutputLayer,
    teacher: TopK,
    token_weights_N: Tensor,
    *,
    softcap: float = 0.0,
) -> Tensor:
    """The same where only the teacher's K likeliest tokens are known: all others count as one.

    `sum_n w_n (sum_k q_nk (-ln p_nk) + q_n,rest (-ln p_n,rest))`: at most `soft_cross_entropy`,
    and equal to it where K is V. How the student shares out the rest is left to it.

    Args:
        teacher: of the N tokens; probabilities that were rounded are scaled to add up to 1.
        hidden_ND, layer, token_weights_N, softcap: as above.

    Returns:
        As above.
    """
    num_ids = layer.weight_VD.shape[0]

    def of_chunk(rows_C: Tensor, logits_CV: Tensor) -> tuple[Tensor, Tensor]:
        ids_CK = teacher.ids_NK[rows_C].long()
        log_q_CJ = teacher.log_probs_NJ[rows_C].float()
        if ids_CK.shape[1] == num_ids:  # a larger vocabulary's: none of the others is the student's
            log_q_CJ[:, -1] = -torch.inf
        q_CJ = log_q_CJ.softmax(dim=1)
        kept_CK = logits_CV.gather(1, ids_CK)
        # of the others alone: 1 minus the probabilities of the kept would round to 0 or below
        rest_C1 = logits_CV.scatter_(1, ids_CK, -torch.inf).logsumexp(dim=1, keepdim=True)
        log_p_CJ = torch.cat([kept_CK, rest_C1], dim=1).log_softmax(dim=1)
        loss_CJ = torch.where(q_CJ > 0.0, -q_CJ * log_p_CJ, 0.0)
        gradient_CJ = log_p_CJ.exp() - q_CJ
        # each of the others has the part of their gradient that it has of their probability
        lowest = torch.finfo(rest_C1.dtype).min
        gradient_CV = logits_CV.sub_(rest_C1.clamp(min=lowest)).exp_().mul_(gradient_CJ[:, -1:])
        return loss_CJ.sum(dim=1), gradient_CV.scatter_(1, ids_CK, gradient_CJ[:, :-1])

    loss: Tensor = _ChunkedLoss.apply(hidden_ND, *layer, token_weights_N, softcap, of_chunk)
    return loss


@torch.no_grad()
def likeliest_tokens(
    hidden_ND: Tensor, layer: OutputLayer, *, k: int, num_ids: int, softcap: float = 0.0
) -> TopK:
    """The K most likely next tokens of each position, the likeliest first.

    Args:
        k: at most `num_ids`.
        num_ids: only ids below it are kept; rows of the output layer behind them only fill it up.
        softcap: of the logits, 0 for none.

    Returns:
        Log-probabilities in fp32.
    """
    chunk = _chunk_of(hidden_ND, layer)
    logits_of, found = Logits(*layer, chunk), []
    for hidden_CD in hidden_ND.split(chunk):
        logits_CV = _capped(logits_of(hidden_CD).float(), softcap)[0]
        kept_CK, ids_CK = logits_CV[:, :num_ids].topk(k, dim=1)
        rest_C1 = logits_CV.scatter_(1, ids_CK, -torch.inf).logsumexp(dim=1, keepdim=True)
        log_probs_CJ = torch.cat([kept_CK, rest_C1], dim=1).log_softmax(dim=1)
        found.append(TopK(ids_CK.int(), log_probs_CJ))
    return TopK(*(torch.cat(column) for column in zip(*found, strict=True)))


def _chunk_of(hidden_ND: Tensor, layer: OutputLayer) -> int:
    return max(1, min(_CHUNK_LOGITS // layer.weight_VD.shape[0], hidden_ND.shape[0]))


class _ChunkedLoss(torch.autograd.Function):
    """The weighted sum of a loss of each row of logits, with its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        token_weights_N: Tensor,
        softcap: float,
        of_chunk: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> Tensor:
        """`of_chunk`: loss `[C]` and gradient `[C, V]` of fp32 logits, which it may overwrite."""
        chunk = _chunk_of(hidden_ND, OutputLayer(weight_VD))
        student = Logits(weight_VD, bias_V, chunk)
        gradients = Gradients(hidden_ND, weight_VD, bias_V)
        loss = hidden_ND.new_zeros((), dtype=torch.float64)
        for rows_C in token_weights_N.nonzero()[:, 0].split(chunk):
            hidden_CD, weights_C = hidden_ND[rows_C], token_weights_N[rows_C].float()
            logits_CV, slope_CV = _capped(student(hidden_CD).float(), softcap)
            loss_C, gradient_CV = of_chunk(rows_C, logits_CV)
            loss += (loss_C * weights_C).double().sum()
            gradient_CV.mul_(weights_C[:, None])
            if slope_CV is not None:
                gradient_CV.mul_(slope_CV)
            gradients.add(rows_C, gradient_CV.to(hidden_ND.dtype), hidden_CD)
        ctx.save_for_backward(gradients.hidden_ND, gradients.weight_VD, gradients.bias_V)
        return loss.float()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if grad is None else grad.mul_(upstream[0]) for grad in ctx.saved_tensors)
        return *scaled, None, None, None


def _capped(logits: Tensor, softcap: float) -> tuple[Tensor, Tensor | None]:
    """z = c tanh(x / c), and dz/dx; None where it is 1."""
    if not softcap:
        return logits, None
    share = torch.tanh(logits / softcap)
    return share * softcap, 1.0 - share.square()
