"""Properties of the packers, for any lengths and any S."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.packing.policies import Packing, best_fit, concat, split_long

LENGTHS = st.lists(st.integers(min_value=1, max_value=90), max_size=60)
SEQ_LENS = st.integers(min_value=2, max_value=40)
PACKERS = pytest.mark.parametrize("packer", [best_fit, concat])


def _fill(packing: Packing) -> list[int]:
    return [
        int(packing.pieces[a:b, 2].sum())
        for a, b in zip(packing.samples[:-1], packing.samples[1:], strict=True)
    ]


def _plain_best_fit_decreasing(lengths: list[int], seq_len: int) -> list[int]:
    """The textbook's loop over every bin; returns tokens per sample, sorted."""
    room: list[int] = []
    pieces = split_long(np.array(lengths, dtype=np.int64), seq_len=seq_len)[:, 2].tolist()
    for length in sorted(pieces, reverse=True):
        fitting = [r for r in room if r >= length]
        if fitting:
            room.remove(min(fitting))
            room.append(min(fitting) - length)
        else:
            room.append(seq_len - length)
    return sorted(seq_len - r for r in room)


@PACKERS
@given(lengths=LENGTHS, seq_len=SEQ_LENS)
@settings(max_examples=150, deadline=None)
def test_every_token_is_in_exactly_one_sample(packer, lengths, seq_len):
    packing = packer(np.array(lengths, dtype=np.int64), seq_len=seq_len)
    seen = [
        (document, token)
        for document, start, length in packing.pieces.tolist()
        for token in range(start, start + length)
    ]
    expected = [(d, t) for d, length in enumerate(lengths) for t in range(length)]
    assert sorted(seen) == expected


@PACKERS
@given(lengths=LENGTHS, seq_len=SEQ_LENS)
@settings(max_examples=150, deadline=None)
def test_no_sample_is_longer_than_asked_or_empty(packer, lengths, seq_len):
    packing = packer(np.array(lengths, dtype=np.int64), seq_len=seq_len)
    assert all(0 < tokens <= seq_len for tokens in _fill(packing))
    assert packing.samples[0] == 0
    assert packing.samples[-1] == len(packing.pieces)


@given(lengths=LENGTHS, seq_len=SEQ_LENS)
@settings(max_examples=300, deadline=None)
def test_best_fit_fills_samples_as_the_textbook_does(lengths, seq_len):
    packing = best_fit(np.array(lengths, dtype=np.int64), seq_len=seq_len)
    assert sorted(_fill(packing)) == _plain_best_fit_decreasing(lengths, seq_len)


@given(lengths=LENGTHS, seq_len=SEQ_LENS)
@settings(max_examples=100, deadline=None)
def test_best_fit_cuts_only_documents_longer_than_a_sample(lengths, seq_len):
    packing = best_fit(np.array(lengths, dtype=np.int64), seq_len=seq_len)
    num_pieces = np.bincount(packing.pieces[:, 0], minlength=len(lengths))
    assert num_pieces.tolist() == [-(-length // seq_len) for length in lengths]


@given(lengths=LENGTHS, seq_len=SEQ_LENS)
@settings(max_examples=100, deadline=None)
def test_concat_keeps_order_and_pads_only_the_last_sample(lengths, seq_len):
    packing = concat(np.array(lengths, dtype=np.int64), seq_len=seq_len)
    assert all(tokens == seq_len for tokens in _fill(packing)[:-1])
    documents = packing.pieces[:, 0].tolist()
    assert documents == sorted(documents)


def test_worked_examples():
    lengths = np.array([5, 12])
    assert split_long(lengths, seq_len=5).tolist() == [[0, 0, 5], [1, 0, 5], [1, 5, 5], [1, 10, 2]]
    packing = concat(np.array([3, 4]), seq_len=5)
    assert packing.pieces.tolist() == [[0, 0, 3], [1, 0, 2], [1, 2, 2]]
    assert packing.samples.tolist() == [0, 2, 3]


def test_packing_twice_gives_the_same_index():
    lengths = np.random.default_rng(0).integers(1, 300, size=2000)
    first, second = best_fit(lengths, seq_len=128), best_fit(lengths, seq_len=128)
    assert np.array_equal(first.pieces, second.pieces)
    assert np.array_equal(first.samples, second.samples)


def test_best_fit_leaves_little_padding_on_lengths_as_they_occur():
    lengths = np.random.default_rng(0).lognormal(5.5, 1.2, size=20_000).astype(np.int64) + 1
    packing = best_fit(lengths, seq_len=2048)
    num_samples = len(packing.samples) - 1
    assert lengths.sum() / (num_samples * 2048) > 0.999


def test_best_fit_takes_a_million_documents_within_seconds():
    # 0.4 s where this was written; a scan over all bins would take hours.
    lengths = np.random.default_rng(0).lognormal(6, 1.2, size=1_000_000).astype(np.int64) + 1
    packing = best_fit(lengths, seq_len=4096)
    assert packing.pieces[:, 2].sum() == lengths.sum()


def test_progress_counts_every_piece():
    reports: list[int] = []
    packing = best_fit(np.array([7, 7, 3, 20]), seq_len=8, report=reports.append)
    assert sum(reports) == len(packing.pieces)
