"""Ulysses around the attention of a model: heads are exchanged for shards of the sequence.

B rows, S tokens of this rank's shard, H heads, E numbers a head.
"""

from __future__ import annotations

import functools
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from training.model import attention
from training.model.attention import ATTENTION_NAME

_PER_HEAD = ("s_aux", "key_bias")
"""Arguments of attention that have one number for each head of the whole layer."""


def shard_attention(*, sp_size: int, micro_batch_samples: int, sequence_tokens: int) -> Any | None:
    """Put Ulysses around the attention that models here are built with.

    Returns:
        DeepSpeed's model-parallel unit for `deepspeed.initialize(mpu=...)`, None without shards.
    """
    if sp_size == 1:
        return None
    from deepspeed.runtime.sequence_parallel import parallel_state_sp

    parallel_state_sp.initialize_sequence_parallel(sequence_parallel_size=sp_size)
    ALL_ATTENTION_FUNCTIONS[ATTENTION_NAME] = _ShardedAttention(
        parallel_state_sp.get_sequence_parallel_group(),
        batch_size=micro_batch_samples,
        local_seq_length=sequence_tokens // sp_size,
        global_seq_length=sequence_tokens,
    )
    return parallel_state_sp


class _ShardedAttention:
    """DeepSpeed's exchange for the heads that a layer has, whatever its configuration calls them.

    Source: `deepspeed/runtime/sequence_parallel/ulysses_sp.py`, `register_with_transformers`, which
    takes one size for all heads from the configuration.
    """

    def __init__(self, group: Any, **lengths: int) -> None:
        self._group, self._lengths = group, lengths
        self._exchange = functools.cache(self._make_exchange)

    def _make_exchange(self, heads: int, kv_heads: int, head_size: int) -> Any:
        from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

        return UlyssesSPAttentionHF(
            attn=attention.document_attention,
            attn_head_count=heads,
            attn_head_size=head_size,
            kv_head_count=kv_heads,
            num_hidden_layers=0,  # for a mode of debugging alone
            process_group=self._group,
            **self._lengths,
        )

    def __call__(
        self,
        module: nn.Module,
        query_BHSE: Tensor,
        key_BHSE: Tensor,
        value_BHSE: Tensor,
        attention_mask: Tensor | None,
        **keywords: Any,
    ) -> tuple[Tensor, None]:
        """As `document_attention`; without the mask, which is that of a shard."""
        heads, width = query_BHSE.shape[1], value_BHSE.shape[-1]
        size = max(query_BHSE.shape[-1], width)
        exchange = self._exchange(heads, key_BHSE.shape[1], size)
        # it gathers positions for other attentions; some models have none to hand on
        keywords["position_ids"] = query_BHSE.new_zeros(1, 1)
        keywords["scaling"] = keywords.get("scaling") or query_BHSE.shape[-1] ** -0.5
        for name in _PER_HEAD:
            if (whole := keywords.get(name)) is not None:
                keywords[name] = whole.chunk(exchange.world_size)[exchange.sp_rank]
        # it takes tensors of one width; zeros change no score, and are cut off behind it
        padded = [F.pad(x, (0, size - x.shape[-1])) for x in (query_BHSE, key_BHSE, value_BHSE)]
        context, _ = exchange(module, *padded, None, **keywords)
        return context.unflatten(-1, (heads, size))[..., :width], None
