"""Which tokens a step trains on: epoch order, sequence shards, targets, all O(1) in the corpus.

B rows of a micro-batch, T tokens of a sample, S = T / sp tokens of this rank's shard.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from data_prep.shards import PackedSample
from training.data.documents import DocumentLayout, find_documents
from training.data.joined_pack import SamplePack
from training.data.sample_order import SampleOrder
from training.ranks.dist import Layout

IGNORE = -100


@dataclass(frozen=True)
class MicroBatch:
    """This rank's shard of the rows of one forward pass."""

    ids_BS: Tensor
    position_ids_BS: Tensor
    """Restart at 0 in each document; global, not shard-local."""
    targets_BS: Tensor
    """The next token of the same document, `IGNORE` where there is none."""
    token_index_BP: Tensor
    """Unique number of each token of the shard and of the one after it, over the whole run."""
    corpus_index_BP: Tensor
    """Number of each of these tokens in the corpus, the same at every visit."""
    is_target_token_BP: Tensor
    """Whether each of these tokens is a target, at its own position."""
    document_tokens_BS: Tensor
    """Length of the piece of a document that each token is in."""
    documents: DocumentLayout
    """Of the whole rows: attention sees the gathered sequence."""
    sample_ids: tuple[int, ...]
    """Which sample each row is, -1 for a row that only fills the batch."""
    visits: tuple[int, ...]
    """Unique number of each row of the run; negative for one that only fills."""
    epochs: tuple[int, ...]
    """In which epoch each row is."""
    num_tokens: int
    """Tokens of documents in this shard, without padding."""
    num_targets: int
    """Positions of this shard that have a target."""

    @property
    def is_target_BS(self) -> Tensor:
        return self.targets_BS != IGNORE

    def to(self, device: torch.device) -> MicroBatch:
        """The same on a device; from pinned memory, without waiting for it."""
        return self._with(
            lambda part: part.to(device, non_blocking=True), self.documents.to(device)
        )

    def pinned(self) -> MicroBatch:
        """The same in pinned memory."""
        return self._with(Tensor.pin_memory, self.documents.pinned())

    def _with(self, change: Callable[[Tensor], Tensor], documents: DocumentLayout) -> MicroBatch:
        changed: dict[str, Any] = {"documents": documents}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Tensor):
                changed[each.name] = change(value)
        return replace(self, **changed)


@dataclass(frozen=True)
class SampleStream:
    """The run's samples in global order, cut into steps, micro-steps and ranks.

    The order is one stream of epochs, independent of the layout: sample j of step k is number
    `k * samples_per_step + j`. A step may straddle two epochs, so each epoch is exact. The last
    step is padded with rows that have no targets.
    """

    pack: SamplePack
    split: Literal["train", "val"]
    layout: Layout
    total_samples: int
    samples_per_step: int
    micro_batch_samples: int
    order: SampleOrder | None = None
    """None keeps the order of the pack, as evaluation does."""
    first_sample: int = 0
    """Without an order: where in the pack the samples begin."""

    @property
    def num_steps(self) -> int:
        return -(-self.total_samples // self.samples_per_step)

    @property
    def num_micro_steps(self) -> int:
        """Gradient accumulation: forward passes of each rank in a step."""
        return self.samples_per_step // (self.micro_batch_samples * self.layout.dp_size)

    def step(self, step: int) -> list[MicroBatch]:
        """This rank's micro-batches of an optimizer step."""
        return [batch.to(self.layout.device) for batch in self.on_host(step)]

    def on_host(self, step: int) -> list[MicroBatch]:
        """The same in the host's memory, pinned for a GPU."""
        batches = [self._micro_batch(step, number) for number in range(self.num_micro_steps)]
        if self.layout.device.type == "cuda":
            return [batch.pinned() for batch in batches]
        return batches

    @property
    def samples_per_epoch(self) -> int:
        return self.order.samples_per_epoch if self.order else max(1, self.total_samples)

    def epochs_of(self, step: int) -> range:
        """The epochs that a step trains on; the first is the one in which it begins."""
        first, last = self._numbers(step)[0], self._numbers(step)[-1]
        return range(first // self.samples_per_epoch, last // self.samples_per_epoch + 1)

    def _numbers(self, step: int) -> range:
        """Positions of a step's samples in the global order, without rows that only fill it."""
        first = step * self.samples_per_step
        return range(first, max(first + 1, min(first + self.samples_per_step, self.total_samples)))

    def superseded(self, step: int) -> frozenset[int]:
        """`visits` of a step, over all ranks, whose sample comes again later in the same step."""
        numbers = self._numbers(step)
        if self.order is None or not self.order.may_repeat(numbers):
            return frozenset()
        came: dict[int, int] = {}
        again = set()
        for number in numbers:
            sample, times_seen = self.order.sample_at(number)
            if sample in came:
                again.add(came[sample])
            came[sample] = times_seen * self.pack.num_samples(self.split) + sample
        return frozenset(again)

    def _micro_batch(self, step: int, micro_step: int) -> MicroBatch:
        first = step * self.samples_per_step + self.micro_batch_samples * (
            micro_step * self.layout.dp_size + self.layout.dp_rank
        )
        numbers = range(first, first + self.micro_batch_samples)
        rows = [self._row(number) for number in numbers]
        ids_BT = torch.from_numpy(np.stack([row.ids for row in rows]))
        position_ids_BT = torch.from_numpy(np.stack([row.position_ids for row in rows]))
        targets_BT = torch.from_numpy(np.stack([row.targets for row in rows]))
        num_tokens_B = np.array([row.num_tokens for row in rows])
        length = self.pack.seq_len
        shard = length // self.layout.sp_size
        start = self.layout.sp_rank * shard
        visit_B1 = torch.tensor([[row.visit] for row in rows])
        sample_B1 = torch.tensor([[row.sample] for row in rows])
        place_S1 = torch.arange(start, start + shard + 1)
        is_target_token_BT1 = F.pad(targets_BT != IGNORE, (1, 0))
        own = slice(start, start + shard)
        return MicroBatch(
            ids_BS=ids_BT[:, own],
            position_ids_BS=position_ids_BT[:, own].contiguous(),
            targets_BS=targets_BT[:, own],
            token_index_BP=visit_B1 * length + place_S1,
            corpus_index_BP=sample_B1 * length + place_S1,
            is_target_token_BP=is_target_token_BT1[:, start : start + shard + 1],
            document_tokens_BS=torch.from_numpy(
                np.stack([piece_lengths(row.position_ids)[own] for row in rows])
            ),
            documents=find_documents(position_ids_BT, device=position_ids_BT.device),
            sample_ids=tuple(row.sample for row in rows),
            visits=tuple(row.visit for row in rows),
            epochs=tuple(number // self.samples_per_epoch for number in numbers),
            num_targets=int((targets_BT[:, own] != IGNORE).sum()),
            num_tokens=int((num_tokens_B - start).clip(0, shard).sum()),
        )

    def _row(self, number: int) -> _Row:
        """The row at a place of the global order."""
        length, num_samples = self.pack.seq_len, self.pack.num_samples(self.split)
        if number >= self.total_samples:
            no_targets = np.full(length, IGNORE, dtype=np.int64)
            visit = self.total_samples - number - 1  # below every number of a sample
            return _Row(np.zeros(length, np.int64), np.arange(length), no_targets, 0, visit, -1)
        sample_id, times_seen = self.first_sample + number, 0
        if self.order:
            sample_id, times_seen = self.order.sample_at(number)
        sample = self.pack.sample(sample_id, self.split)
        targets = next_token_targets(sample)
        visit = times_seen * num_samples + sample_id
        return _Row(sample.ids, sample.position_ids, targets, sample.num_tokens, visit, sample_id)


class _Row(NamedTuple):
    """A sample with its targets, or what fills up the last step."""

    ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    targets: NDArray[np.int64]
    num_tokens: int
    visit: int
    """As in `MicroBatch.visits`."""
    sample: int
    """As in `MicroBatch.sample_ids`."""


def next_token_targets(sample: PackedSample) -> NDArray[np.int64]:
    """Target of each position, `[T]`: the next token, if in the same document and not masked.

    Example: position ids 0 1 2 0 1 and ids a b c d e give the targets b c - e -.
    """
    targets = np.full_like(sample.ids, IGNORE)
    inner = slice(0, max(sample.num_tokens - 1, 0))
    after = slice(1, max(sample.num_tokens, 1))
    is_target = (sample.position_ids[after] != 0) & sample.in_loss[after]
    targets[inner] = np.where(is_target, sample.ids[after], IGNORE)
    return targets


def piece_lengths(position_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Length of the piece that each position is in: 0 1 2 0 1 gives 3 3 3 2 2."""
    starts = np.append(np.flatnonzero(position_ids == 0), len(position_ids))
    lengths = np.diff(starts)
    return np.repeat(lengths, lengths)
