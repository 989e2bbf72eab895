"""The order of samples: every domain exact over the epochs, mixed, found at once anywhere."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.packing.mixture import DomainShare
from tests.training.layouts import whole_epochs
from training.data.sample_order import Permutations, SampleOrder


def make_order(*domains: tuple[int, int], seed: int = 0) -> SampleOrder:
    """Of domains given as (samples, samples an epoch)."""
    shares, first = [], 0
    for size, per_epoch in domains:
        shares.append(DomainShare(str(first), range(first, first + size), per_epoch, 0, 0))
        first += size
    return SampleOrder(tuple(shares), seed=seed)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_a_permutation_holds_every_number_once(size):
    permutations = Permutations(size, key=(3,))
    for number in range(3):
        assert sorted(permutations.at(i, number=number) for i in range(size)) == list(range(size))


def test_order_changes_with_epoch_and_seed_and_mixes():
    orders = {}
    for seed in (1, 2):
        order = whole_epochs(500, seed=seed)
        for epoch in (0, 1):
            places = range(500 * epoch, 500 * epoch + 500)
            orders[seed, epoch] = [order.sample_at(place)[0] for place in places]
    assert len({tuple(order) for order in orders.values()}) == 4
    for order in orders.values():
        # of a random permutation, about one in 500 is followed by its neighbour
        assert sum(b - a == 1 for a, b in pairwise(order)) < 12
        assert abs(np.corrcoef(order, range(500))[0, 1]) < 0.2


@given(
    domains=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 70)), min_size=1, max_size=4),
    epochs=st.integers(1, 5),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=60, deadline=None)
def test_every_domain_is_exact_after_any_number_of_epochs(domains, epochs, seed):
    if not any(per_epoch for _, per_epoch in domains):
        domains = [*domains, (3, 2)]
    order = make_order(*domains, seed=seed)
    drawn = [order.sample_at(i) for i in range(epochs * order.samples_per_epoch)]
    assert len(set(drawn)) == len(drawn)  # (sample, times seen) numbers a row of the run
    times, first = Counter(sample for sample, _ in drawn), 0
    for size, per_epoch in domains:
        seen = [times[sample] for sample in range(first, first + size)]
        assert sum(seen) == epochs * per_epoch
        assert max(seen) - min(seen) <= 1
        first += size


def test_domains_are_mixed_throughout_an_epoch():
    order = make_order((1000, 1000), (100, 1000))
    quarters = np.array([order.sample_at(i)[0] >= 1000 for i in range(2000)]).reshape(4, -1)
    # 250 of 500 expected, standard deviation about 10
    assert (abs(quarters.sum(axis=1) - 250) < 60).all()


def test_position_in_a_huge_epoch_is_found_at_once():
    order = make_order((10**12, 10**12), (10**9, 10**10))
    last = 10**6 * order.samples_per_epoch
    seen = {order.sample_at(last - 1 - i) for i in range(1000)}
    assert len(seen) == 1000
    assert all(0 <= sample < 10**12 + 10**9 for sample, _ in seen)
