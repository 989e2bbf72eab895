"""Which tokens a step trains on: the order, the shards, the targets, on any layout."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.training.layouts import SEQUENCE_TOKENS, UnevenPack
from training.data import IGNORE, EpochOrder, SampleStream, batch_shape, next_token_targets
from training.dist import Layout


@pytest.mark.parametrize("num_samples", [1, 2, 3, 7, 64, 1000])
def test_every_epoch_is_a_permutation_of_the_samples(num_samples):
    order = EpochOrder(num_samples, seed=3)
    for epoch in range(3):
        seen = [order.sample_at(i, epoch=epoch) for i in range(num_samples)]
        assert sorted(seen) == list(range(num_samples))


def test_order_changes_with_epoch_and_seed_and_mixes():
    orders = {
        (seed, epoch): [EpochOrder(500, seed=seed).sample_at(i, epoch=epoch) for i in range(500)]
        for seed in (1, 2)
        for epoch in (0, 1)
    }
    assert len({tuple(order) for order in orders.values()}) == 4
    for order in orders.values():
        # of a random permutation, about one in 500 is followed by its neighbour
        assert sum(b - a == 1 for a, b in pairwise(order)) < 12
        assert abs(np.corrcoef(order, range(500))[0, 1]) < 0.2


def test_position_in_a_huge_epoch_is_found_at_once():
    order = EpochOrder(10**12, seed=0)
    seen = {order.sample_at(10**12 - 1 - i, epoch=10**6) for i in range(1000)}
    assert len(seen) == 1000
    assert all(0 <= sample < 10**12 for sample in seen)


def test_targets_stay_within_a_document():
    ids = np.array([10, 11, 12, 20, 21, 0, 0])
    position_ids = np.array([0, 1, 2, 0, 1, 0, 1])
    targets = next_token_targets(ids, position_ids, 5)
    assert targets.tolist() == [11, 12, IGNORE, 21, IGNORE, IGNORE, IGNORE]


@pytest.mark.parametrize("num_tokens", [0, 1])
def test_a_sample_of_one_token_has_no_target(num_tokens):
    targets = next_token_targets(np.arange(4), np.array([0, 0, 1, 2]), num_tokens)
    assert (targets == IGNORE).all()


def make_stream(world_size: int, rank: int, sp_size: int, rows: int, total: int) -> SampleStream:
    pack = UnevenPack(num=7)
    return SampleStream(
        pack=pack,
        split="train",
        layout=Layout(rank, world_size, sp_size, torch.device("cpu")),
        total_samples=total,
        samples_per_step=4,
        micro_batch_samples=rows,
        order=EpochOrder(7, seed=1),
    )


def tokens_of_step(step: int, world_size: int, sp_size: int, rows: int) -> dict[int, tuple]:
    """Unique number -> (id, position, target, document start) of every token of a step."""
    found = {}
    for rank in range(world_size):
        for batch in make_stream(world_size, rank, sp_size, rows, total=25).step(step):
            shard = batch.ids_BS.shape[1]
            for row in range(rows):
                for s in range(shard):
                    key = int(batch.token_index_BS1[row, s])
                    assert key not in found
                    found[key] = (
                        int(batch.ids_BS[row, s]),
                        int(batch.position_ids_BS[row, s]),
                        int(batch.targets_BS[row, s]),
                    )
    return found


@pytest.mark.parametrize("step", [0, 1, 6])  # 1 straddles two epochs, 6 is filled up
@pytest.mark.parametrize(
    ("world_size", "sp_size", "rows"), [(1, 1, 2), (2, 1, 2), (2, 2, 4), (4, 2, 1), (4, 4, 2)]
)
def test_a_step_has_the_same_tokens_on_any_layout(world_size, sp_size, rows, step):
    assert tokens_of_step(step, world_size, sp_size, rows) == tokens_of_step(step, 1, 1, 4)


def test_every_epoch_trains_each_sample_exactly_once():
    stream = make_stream(1, 0, 1, 2, total=21)
    seen = [s for step in range(stream.num_steps) for b in stream.step(step) for s in b.sample_ids]
    assert seen[21:] == [-1, -1, -1]  # the last step of 4 is filled up
    for epoch in range(3):
        assert sorted(seen[7 * epoch : 7 * epoch + 7]) == list(range(7))


def test_filling_rows_have_no_targets_and_no_tokens():
    stream = make_stream(1, 0, 1, 4, total=21)
    (batch,) = stream.step(5)
    assert batch.sample_ids[1:] == (-1, -1, -1)
    assert (batch.targets_BS[1:] == IGNORE).all()
    first = stream.pack.sample(batch.sample_ids[0], "train")
    assert batch.num_tokens == first.num_tokens


def test_tokens_of_shards_add_up():
    whole = make_stream(1, 0, 1, 4, total=21).step(0)[0].num_tokens
    shards = [make_stream(4, rank, 4, 4, total=21).step(0)[0].num_tokens for rank in range(4)]
    assert sum(shards) == whole
    assert max(shards) <= 4 * SEQUENCE_TOKENS // 4


def test_batch_that_does_not_divide_names_the_nearest_that_do():
    with pytest.raises(ValueError, match="Nearest that divide: 1024 or 1536"):
        batch_shape(global_batch_tokens=1280, sequence_tokens=128, micro_batch_samples=2, dp_size=2)
    shape = batch_shape(
        global_batch_tokens=1536, sequence_tokens=128, micro_batch_samples=2, dp_size=2
    )
    assert shape == (12, 3)
