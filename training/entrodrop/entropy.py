"""Entropies aligned to the tokens that they predict, across the shards of a sequence.

B rows, S tokens of this rank's sequence shard. Position s predicts the token at s + 1, so a
shard's last entropy belongs to the next shard's first token.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor


def token_entropies(
    entropy_BS: Tensor, is_target_BS: Tensor, *, sp_group: dist.ProcessGroup | None = None
) -> Tensor:
    """Entropy of each token of the shard and of the one after it, fp32 `[B, S + 1]`.

    Column j belongs to the shard's j-th token: column 0 was predicted at the end of the shard
    before (+inf on the first), column j > 0 at this shard's position j - 1. Columns 1.. are
    the shard's own predictions and make up its part of the population.

    Args:
        entropy_BS: fp32 `[B, S]`, in nats, at the position that predicts.
        is_target_BS: bool `[B, S]`, whether that position has a target. The tokens of the
            others get +inf and are never dropped.
        sp_group: the ranks that share these rows, in sequence order; None when one has them all.

    Communicates one value per row and rank, whatever the length of the sequence.
    """
    own_BS = torch.where(is_target_BS, entropy_BS.float(), math.inf)
    before_B1 = torch.full_like(own_BS[:, :1], math.inf)
    if sp_group is not None and dist.get_world_size(sp_group) > 1:
        last_B = own_BS[:, -1].contiguous()
        gathered = [torch.empty_like(last_B) for _ in range(dist.get_world_size(sp_group))]
        dist.all_gather(gathered, last_B, group=sp_group)
        sp_rank = dist.get_rank(sp_group)
        if sp_rank > 0:
            before_B1 = gathered[sp_rank - 1][:, None]
    return torch.cat([before_B1, own_BS], dim=1)
