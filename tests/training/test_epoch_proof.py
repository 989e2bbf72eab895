"""The digest of an epoch: one on any layout and cut into steps, another for other samples."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from data_prep.packing.mixture import DomainShare
from tests.training.layouts import UnevenPack
from training.data.epoch_digest import finish_epochs, visits_digest
from training.data.sample_order import SampleOrder
from training.data.stream import SampleStream
from training.ranks.dist import Layout

NUM_SAMPLES = 10


def make_stream(
    *, samples_per_step: int, seed: int = 1, per_epoch: int = NUM_SAMPLES, total: int = 34
) -> SampleStream:
    share = DomainShare("all", range(NUM_SAMPLES), per_epoch, 0, 0)
    return SampleStream(
        pack=UnevenPack(num=NUM_SAMPLES),
        split="train",
        layout=Layout(0, 1, 1, torch.device("cpu")),
        total_samples=total,
        samples_per_step=samples_per_step,
        micro_batch_samples=1,
        order=SampleOrder((share,), seed=seed),
    )


def digests_of_run(stream: SampleStream, *, dp_size: int = 1, sp_size: int = 1) -> dict[int, str]:
    """What the ranks would find together, their numbers added up as an all-reduce does."""
    world_size = dp_size * sp_size
    ranks = [
        replace(stream, layout=Layout(rank, world_size, sp_size, torch.device("cpu")))
        for rank in range(world_size)
    ]
    finished: dict[int, str] = {}
    carried = 0
    for step in range(stream.num_steps):
        parts = [visits_digest(rank.step(step), rank, step) for rank in ranks]
        ended, carried = finish_epochs(carried, sum(parts).tolist(), stream, step)
        finished |= ended
    return finished


def test_every_whole_epoch_has_a_digest_of_its_own():
    found = digests_of_run(make_stream(samples_per_step=4))
    assert list(found) == [0, 1, 2]  # the fourth is not whole
    assert len(set(found.values())) == 3  # the same samples, seen for another time
    assert all(len(digest) == 16 for digest in found.values())


@pytest.mark.parametrize(("dp_size", "sp_size"), [(1, 2), (2, 1), (2, 2), (4, 1)])
def test_it_is_the_same_on_any_layout(dp_size, sp_size):
    stream = make_stream(samples_per_step=4)
    assert digests_of_run(stream, dp_size=dp_size, sp_size=sp_size) == digests_of_run(stream)


@pytest.mark.parametrize("samples_per_step", [1, 2, 5, 10, 16, 34])
def test_it_is_the_same_however_steps_cut_the_epochs(samples_per_step):
    expected = digests_of_run(make_stream(samples_per_step=4))
    assert digests_of_run(make_stream(samples_per_step=samples_per_step)) == expected


def test_it_knows_no_order_within_an_epoch_but_every_sample():
    expected = digests_of_run(make_stream(samples_per_step=4))
    assert digests_of_run(make_stream(samples_per_step=4, seed=2)) == expected
    part = digests_of_run(make_stream(samples_per_step=4, per_epoch=9))
    other = digests_of_run(make_stream(samples_per_step=4, per_epoch=9, seed=2))
    assert part[0] != expected[0]
    assert part[0] != other[0]  # nine of ten, not the same nine


def test_a_run_that_ends_with_an_epoch_ends_it():
    assert list(digests_of_run(make_stream(samples_per_step=4, total=20))) == [0, 1]
