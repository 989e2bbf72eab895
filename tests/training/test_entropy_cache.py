"""The run's own entropies on disk: holes have no value, marks come back, copies are whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.regularisers.entropy_cache import EntropyCache


@pytest.fixture
def cache(tmp_path: Path) -> EntropyCache:
    cache = EntropyCache(tmp_path / "cache", num_samples=5, sample_tokens=8)
    cache.clear()
    return cache


def test_an_empty_cache_has_no_values(cache):
    """Its file is a hole: zeros there must not read as the lowest of all entropies."""
    assert np.isnan(cache.read((0, 4, -1), first=0, count=9)).all()
    assert cache.path.stat().st_size == cache.num_bytes == 5 * 8 * 2


def test_values_come_back_with_their_marks(cache):
    values = np.array([[0.5, -1.25, 0.0, -0.0, np.nan]], dtype=np.float32)
    cache.write((2,), values, first=2)
    found = cache.read((2,), first=0, count=8)
    assert np.array_equal(found[:, 2:7], values, equal_nan=True)
    assert np.array_equal(np.signbit(found[0, 2:6]), [False, True, False, True])
    assert np.isnan(found[0, [0, 1, 6, 7]]).all()
    assert np.isnan(cache.read((1, 3), first=0, count=8)).all()


def test_what_lies_beyond_a_sample_is_neither_read_nor_written(cache):
    """A shard's last prediction is of the token behind it: at the sample's end there is none."""
    cache.write((1,), np.full((1, 4), 3.0, dtype=np.float32), first=5)
    assert np.isnan(cache.read((2,), first=0, count=8)).all()
    found = cache.read((1,), first=4, count=5)
    assert np.array_equal(found, [[np.nan, 3.0, 3.0, 3.0, np.nan]], equal_nan=True)


def test_values_too_large_for_float16_become_its_largest(cache):
    cache.write((0,), np.array([[1e9, -1e9]], dtype=np.float32), first=0)
    assert cache.read((0,), first=0, count=2).tolist() == [[65504.0, -65504.0]]


def test_a_row_that_only_fills_the_batch_is_not_written(cache):
    before = cache.path.read_bytes()
    cache.write((-1,), np.ones((1, 8), dtype=np.float32), first=0)
    assert cache.path.read_bytes() == before


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_the_shares_of_all_ranks_make_a_whole_copy(cache, tmp_path, world_size):
    values = np.random.default_rng(0).random((5, 8)).astype(np.float32)
    cache.write(range(5), values, first=0)
    copy, again = tmp_path / "copy", EntropyCache(tmp_path / "b", num_samples=5, sample_tokens=8)
    again.clear()
    for rank in reversed(range(world_size)):
        cache.save(copy, rank=rank, world_size=world_size)
    assert copy.read_bytes() == cache.path.read_bytes()
    for rank in range(world_size):
        again.load(copy, rank=rank, world_size=world_size)
    assert again.path.read_bytes() == cache.path.read_bytes()
