"""Losses of a model in our forward pass against those of plain transformers.

T tokens of a document, S of all documents in one row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from training.data.documents import find_documents
from training.model.attention import ATTENTION_NAME, register_attention
from training.model.causal_lm import CausalLMWithEntropy
from training.model.inputs import ModelInputs

_MOST_NATS = 1e-3
"""Mean difference of a token. Rounding in fp32 is below 1e-5; a few tokens of a mixture of experts
may be routed otherwise when two experts are all but equal."""


@torch.no_grad()
def find_other_losses(lm: PreTrainedModel, documents: Sequence[Sequence[int]]) -> str | None:
    """Compare in fp32 on the CPU, our pass with all documents in one row, theirs with one a row.

    Args:
        lm: as transformers loads it; becomes fp32 and ours: not to be used afterwards.
        documents: token ids, one or two hundred together.

    Returns:
        The mean differences of nll and entropy in a sentence; None when they are rounding.
    """
    lm = lm.float().eval()
    # a dynamic RoPE of transformers remembers the longest that it has seen: that one comes last
    rows = sorted((torch.tensor(ids) for ids in documents if len(ids) > 1), key=len)
    if not rows:
        return None
    plain = [plain_scores(lm, row) for row in rows]
    nll_S, entropy_S = (torch.cat([each[i] for each in plain]) for i in (0, 1))
    register_attention()
    lm.set_attn_implementation(ATTENTION_NAME)
    positions_S = torch.cat([torch.arange(len(row)) for row in rows])
    targets = [torch.cat([row[1:], torch.tensor([-100])]) for row in rows]
    inputs = ModelInputs(
        ids_BS=torch.cat(rows)[None],
        position_ids_BS=positions_S[None],
        targets_BS=torch.cat(targets)[None],
        documents=find_documents(positions_S[None], device=torch.device("cpu")),
    )
    ours_BS = CausalLMWithEntropy(lm).eval()(inputs)
    is_target_S = inputs.targets_BS[0] != -100
    nll_nats, entropy_nats = (
        float((ours[0][is_target_S] - plain_S).abs().mean())
        for ours, plain_S in zip(ours_BS, (nll_S, entropy_S), strict=True)
    )
    if nll_nats <= _MOST_NATS and entropy_nats <= _MOST_NATS:
        return None
    return (
        f"on {len(nll_S)} tokens of the corpus plain transformers has other losses than the "
        f"training: they differ by {nll_nats:.2g} nats a token, entropies by {entropy_nats:.2g}"
    )


@torch.no_grad()
def plain_scores(lm: PreTrainedModel, ids_T: Tensor) -> tuple[Tensor, Tensor]:
    """nll and entropy `[T - 1]` of the tokens after the first."""
    logits_TV = lm(input_ids=ids_T[None], use_cache=False).logits[0, :-1].float()
    log_p_TV = logits_TV.log_softmax(-1)
    nll_T = -log_p_TV.gather(1, ids_T[1:, None])[:, 0]
    return nll_T, -(log_p_TV.exp() * log_p_TV).sum(-1)
