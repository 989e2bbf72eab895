"""Entropies and drops of a step's tokens, gathered during the step, to be shown in TensorBoard.

B rows, S tokens of this rank's sequence shard.
"""

from __future__ import annotations

import torch

from training.data.stream import MicroBatch
from training.metrics.tokens import ENTROPY_EDGES_NATS, NUM_BINS, SAMPLE_TOKENS, TokenPicture
from training.ranks.dist import Layout, sum_over_ranks
from training.run.forward import Forward


class TokenSketch:
    """Counts on the device; nothing waits for a GPU before `over_ranks`, which all ranks call."""

    def __init__(self, layout: Layout) -> None:
        device = layout.device
        self._edges = torch.tensor(ENTROPY_EDGES_NATS[:-1], device=device)
        self._counts = torch.zeros(2 * NUM_BINS, dtype=torch.int64, device=device)
        self._sample = -1
        self._ids_S = self._dropped_S = torch.zeros(0, dtype=torch.int64, device=device)

    def add(self, batch: MicroBatch, forward: Forward, *, micro_step: int) -> None:
        """Count a micro-batch after its forward pass; the first one gives the sample."""
        is_target_BS, drops_BS = batch.is_target_BS, forward.drops_BS
        if drops_BS is None:
            drops_BS = torch.zeros_like(is_target_BS)
        drops_BS = is_target_BS & drops_BS
        bin_BS = torch.bucketize(forward.scored.entropy_BS.detach().float(), self._edges)
        counted = torch.cat([is_target_BS.flatten(), drops_BS.flatten()]).long()
        bins = torch.cat([bin_BS.flatten(), bin_BS.flatten() + NUM_BINS])
        self._counts.index_add_(0, bins, counted)
        if micro_step == 0:
            self._sample = batch.sample_ids[0]
            self._ids_S = batch.ids_BS[0, :SAMPLE_TOKENS]
            # the drop of a position is that of the token after it; a sample's first never drops
            first = torch.zeros_like(drops_BS[0, :1])
            self._dropped_S = torch.cat([first, drops_BS[0]])[: len(self._ids_S)]

    def over_ranks(self) -> TokenPicture:
        """Counts of all ranks in one reduction of fixed size, and this rank's sample."""
        counts = [int(count) for count in sum_over_ranks(self._counts)]
        return TokenPicture(
            entropy_counts=counts[:NUM_BINS],
            dropped_counts=counts[NUM_BINS:],
            sample=self._sample,
            ids=self._ids_S.tolist(),
            is_dropped=self._dropped_S.bool().tolist(),
        )
