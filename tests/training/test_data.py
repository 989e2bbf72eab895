"""Which tokens a step trains on: the order, the shards, the targets, on any layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_prep.shards import PackedSample
from tests.training.layouts import SEQUENCE_TOKENS, UnevenPack, whole_epochs
from training.config.layout import batch_shape
from training.data.stream import IGNORE, SampleStream, next_token_targets
from training.ranks.dist import Layout


def make_sample(position_ids: list[int], *, num_tokens: int, masked: tuple = ()) -> PackedSample:
    in_loss = np.arange(len(position_ids)) < num_tokens
    in_loss[list(masked)] = False
    ids = np.arange(10, 10 + len(position_ids))
    return PackedSample(
        ids=ids, position_ids=np.array(position_ids), num_tokens=num_tokens, in_loss=in_loss
    )


def test_targets_stay_within_a_document():
    sample = make_sample([0, 1, 2, 0, 1, 0, 1], num_tokens=5)
    expected = [11, 12, IGNORE, 14, IGNORE, IGNORE, IGNORE]
    assert next_token_targets(sample).tolist() == expected


def test_a_token_masked_out_is_read_but_never_a_target():
    sample = make_sample([0, 1, 2, 0, 1, 0, 1], num_tokens=5, masked=(1, 3))
    expected = [IGNORE, 12, IGNORE, 14, IGNORE, IGNORE, IGNORE]
    assert next_token_targets(sample).tolist() == expected


@pytest.mark.parametrize("num_tokens", [0, 1])
def test_a_sample_of_one_token_has_no_target(num_tokens):
    targets = next_token_targets(make_sample([0, 0, 1, 2], num_tokens=num_tokens))
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
        order=whole_epochs(7, seed=1),
    )


def tokens_of_step(step: int, world_size: int, sp_size: int, rows: int) -> dict[int, tuple]:
    """Unique number -> (id, position, target, document start) of every token of a step."""
    found = {}
    for rank in range(world_size):
        for batch in make_stream(world_size, rank, sp_size, rows, total=25).step(step):
            shard = batch.ids_BS.shape[1]
            for row in range(rows):
                for s in range(shard):
                    key = int(batch.token_index_BP[row, s])
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
