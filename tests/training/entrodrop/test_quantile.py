"""The quantile over ranks is the one that a sort of all values gives, bit for bit."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.distributed import run_ranks
from training.entrodrop.quantile import Quantile, global_quantile, last_key_inside

QUANTILES = (0.0, 0.07, 0.25, 1 / 3, 0.5, 0.999, 1.0)


def populations(world_size: int) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Values and validity of each rank, for the cases that have broken others."""
    rng = np.random.default_rng(7)

    def spread(values: np.ndarray, valid: np.ndarray | None = None) -> list:
        valid = np.ones(len(values), bool) if valid is None else valid
        cuts = np.sort(rng.integers(0, len(values) + 1, world_size - 1))
        return list(zip(np.split(values, cuts), np.split(valid, cuts), strict=True))

    normal = rng.normal(size=1001).astype(np.float32)
    bits = rng.integers(0, 2**32, 3000, dtype=np.uint32).view(np.float32)
    empty = np.zeros(0, np.float32)
    on_one_rank = [(empty, np.zeros(0, bool))] * (world_size - 1) + [(normal, np.ones(1001, bool))]
    return {
        "normal": spread(normal),
        "ties": spread(rng.integers(0, 5, 1000).astype(np.float32)),
        "all_equal": spread(np.full(77, 2.5, np.float32)),
        "mostly_zero": spread(np.where(rng.random(500) < 0.9, 0, normal[:500]).astype(np.float32)),
        "signed_zeros": spread(np.array([-0.0, 0.0, -0.0, 1.0, -1.0], np.float32)),
        "subnormals": spread((rng.integers(0, 50, 400) * 1e-45).astype(np.float32)),
        "infinities": spread(np.array([math.inf, -math.inf, 1, 2, math.inf] * 9, np.float32)),
        "any_bits": spread(bits[~np.isnan(bits)]),
        "some_invalid": spread(normal, rng.random(1001) < 0.3),
        "nothing_valid": spread(normal, np.zeros(1001, bool)),
        "empty_ranks": on_one_rank,
        "no_values": [(empty, np.zeros(0, bool))] * world_size,
        "single_value": spread(np.array([3.0], np.float32)),
    }


def quantiles_of_rank(world_size: int) -> dict[tuple[str, float], Quantile]:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    return {
        (name, q): global_quantile(
            torch.from_numpy(shares[rank][0]), q, valid=torch.from_numpy(shares[rank][1])
        )
        for name, shares in populations(world_size).items()
        for q in QUANTILES
    }


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_quantile_is_that_of_a_sort_on_any_number_of_ranks(world_size):
    found = run_ranks(quantiles_of_rank, world_size, world_size=world_size)
    for name, shares in populations(world_size).items():
        values = np.sort(np.concatenate([v[valid] for v, valid in shares]) + np.float32(0))
        for q in QUANTILES:
            rank = math.ceil(Fraction(repr(q)) * len(values))
            threshold = float(values[rank - 1]) if rank else -math.inf
            expected = Quantile(
                threshold=threshold,
                num_at_or_below=int((values <= threshold).sum()) if rank else 0,
                population=len(values),
                num_ties=int((values == threshold).sum()) if rank else 0,
                num_ties_inside=rank - int((values < threshold).sum()) if rank else 0,
            )
            for result in found:
                assert result[name, q] == expected, (name, q)
                assert result[name, q].num_low == rank


def quantile_with_nan_on_last_rank() -> str:
    dist.init_process_group("gloo")
    values = torch.arange(10.0)
    if dist.get_rank() == dist.get_world_size() - 1:
        values[3] = math.nan
    with pytest.raises(ValueError, match="NaN") as caught:
        global_quantile(values, 0.5)
    valid = ~torch.isnan(values)
    assert global_quantile(values, 0.5, valid=valid).population == 29  # an invalid one is nothing
    return str(caught.value)


def test_nan_on_one_rank_is_an_error_on_all():
    messages = run_ranks(quantile_with_nan_on_last_rank, world_size=3, timeout_seconds=60)
    assert set(messages) == {"quantile: 1 of 30 values are NaN, over all ranks"}


def test_decimal_quantile_means_what_it_says():
    # 0.07 * 100 is 7.000000000000001 in binary floating point
    assert global_quantile(torch.arange(100.0), 0.07).num_low == 7


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_quantile_outside_its_range_is_refused(q):
    with pytest.raises(ValueError, match="must lie in"):
        global_quantile(torch.arange(3.0), q)


def test_last_key_inside_orders_signed_keys():
    keys = torch.tensor([5, -3, 2**63 - 1, -(2**63), 0, -1])
    ordered = sorted(keys.tolist())
    found = [last_key_inside(keys, count) for count in range(1, 7)]
    assert found == ordered


def spread_keys() -> dict[str, torch.Tensor]:
    """Different keys: far apart, so that a digit tells them, and neighbours, which need all."""
    generator = torch.Generator().manual_seed(4)
    anywhere = torch.randint(-(2**63), 2**63 - 1, (5000,), generator=generator).unique()
    return {"anywhere": anywhere, "neighbours": torch.arange(-20, 30) + 2**40, "one": anywhere[:1]}


def keys_inside_on_rank() -> dict[str, list[int]]:
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    return {
        name: [
            last_key_inside(keys[rank::world_size], count)
            for count in range(1, len(keys) + 1, max(1, len(keys) // 17))
        ]
        for name, keys in spread_keys().items()
    }


@pytest.mark.parametrize("world_size", [1, 3])
def test_last_key_inside_is_that_of_a_sort_over_ranks(world_size):
    expected = {
        name: keys.sort().values[:: max(1, len(keys) // 17)].tolist()
        for name, keys in spread_keys().items()
    }
    for found in run_ranks(keys_inside_on_rank, world_size=world_size):
        assert found == expected


def collectives_of_a_quantile(num_values: int) -> list[int]:
    """Elements of each all-reduce that a quantile makes."""
    dist.init_process_group("gloo")
    sizes: list[int] = []
    original = dist.all_reduce

    def counting(tensor: torch.Tensor, *args: object, **kwargs: object) -> object:
        sizes.append(tensor.numel())
        return original(tensor, *args, **kwargs)

    dist.all_reduce = counting
    global_quantile(torch.rand(num_values), 0.5)
    return sizes


def test_traffic_does_not_grow_with_tokens():
    small, large = (run_ranks(collectives_of_a_quantile, n, world_size=2)[0] for n in (10, 100_000))
    assert small == large == [2050, 2048, 1024]
