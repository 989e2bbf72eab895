"""Exactly the asked share is low, ties by hash, and a draw depends on the token alone."""

from __future__ import annotations

import math
from itertools import chain

import pytest
import torch
import torch.distributed as dist

from tests.distributed import run_ranks
from training.entrodrop.counter_rng import (
    _GOLDEN,
    _mix_int,
    integers_from_keys,
    token_keys,
    uniform_from_keys,
)
from training.entrodrop.mask import (
    DropRates,
    draw_drops,
    draw_guided_drops,
    masked_contexts,
    select_low_tokens,
)


@pytest.mark.parametrize("q", [0.0, 0.01, 1 / 3, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("entropies", ["distinct", "all_zero", "few_values"])
def test_exactly_the_asked_number_is_low(q, entropies):
    generator = torch.Generator().manual_seed(1)
    entropy = {
        "distinct": torch.rand(1000, generator=generator),
        "all_zero": torch.zeros(1000),
        "few_values": torch.randint(0, 3, (1000,), generator=generator).float(),
    }[entropies]
    index = torch.arange(1000)
    low = select_low_tokens(entropy, index, q=q, seed=5)
    is_low = low.contains(entropy, index)
    assert is_low.sum() == math.ceil(q * 1000)
    if 0 < q < 1:
        assert entropy[is_low].max() <= entropy[~is_low].min()


def test_ties_inside_are_spread_over_positions_and_change_with_the_seed():
    entropy, index = torch.zeros(10_000), torch.arange(10_000)
    low_sets = [
        select_low_tokens(entropy, index, q=0.5, seed=s).contains(entropy, index) for s in (1, 2)
    ]
    for is_low in low_sets:
        assert abs(int(is_low[:5000].sum()) - 2500) < 150  # 3 standard deviations are 106
    assert abs(int((low_sets[0] & low_sets[1]).sum()) - 2500) < 150


def test_tokens_without_a_prediction_are_never_low():
    entropy = torch.tensor([math.inf, 1.0, 2.0, math.inf])
    low = select_low_tokens(entropy, torch.arange(4), q=1.0, seed=0)
    assert low.contains(entropy, torch.arange(4)).tolist() == [False, True, True, False]
    nothing = torch.full((4,), math.inf)
    low = select_low_tokens(nothing, torch.arange(4), q=0.5, seed=0)
    assert low.quantile.population == 0
    assert not low.contains(nothing, torch.arange(4)).any()


def low_tokens_of_rank(shares: list[torch.Tensor]) -> list[int]:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    first = sum(len(share) for share in shares[:rank])
    index = torch.arange(first, first + len(shares[rank]))
    low = select_low_tokens(shares[rank], index, q=0.4, seed=9)
    return index[low.contains(shares[rank], index)].tolist()


@pytest.mark.parametrize("world_size", [2, 4])
def test_low_set_with_ties_is_the_same_on_any_number_of_ranks(world_size):
    generator = torch.Generator().manual_seed(2)
    entropy = torch.randint(0, 3, (503,), generator=generator).float()
    entropy[::7] = math.inf
    index = torch.arange(503)
    whole = select_low_tokens(entropy, index, q=0.4, seed=9)
    expected = index[whole.contains(entropy, index)].tolist()
    cuts = {2: [503, 0], 4: [10, 300, 0, 193]}[world_size]  # one rank has nothing at all
    found = run_ranks(low_tokens_of_rank, list(entropy.split(cuts)), world_size=world_size)
    assert sorted(chain.from_iterable(found)) == expected


def test_low_tokens_drop_at_the_rate():
    index = torch.arange(200_000)
    is_low = index % 2 == 0
    dropped = draw_drops(is_low, index, rate=0.3, seed=4)
    assert not dropped[~is_low].any()
    share = dropped[is_low].double().mean().item()
    assert share == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 100_000))
    assert not draw_drops(is_low, index, rate=0.0, seed=4).any()
    assert draw_drops(is_low, index, rate=1.0, seed=4)[is_low].all()


def test_guidance_keeps_the_mean_rate_and_spares_the_others_at_one():
    gamma, q = 0.37, 0.3
    for guidance in (0.0, 0.25, 0.5, 1.0):
        rates = DropRates(gamma, q=q, guidance=guidance)
        assert q * rates.low + (1 - q) * rates.other == pytest.approx(gamma * q, rel=1e-12)
        assert rates.other <= rates.low
    whole, none = DropRates(gamma, q=q, guidance=1.0), DropRates(gamma, q=q, guidance=0.0)
    assert (whole.low, whole.other) == (gamma, 0.0)
    assert (none.low, none.other) == (gamma * q, gamma * q)


def test_guided_drops_come_at_their_rates_and_never_where_there_is_no_entropy():
    index = torch.arange(300_000)
    is_known = index % 3 > 0
    is_low = index % 3 == 1
    rates = DropRates(gamma=0.4, q=0.5, guidance=0.5)
    dropped = draw_guided_drops(is_low, is_known, index, rates=rates, seed=4)
    assert not dropped[~is_known].any()
    for which, rate in ((is_low, 0.3), (is_known & ~is_low, 0.1)):
        share = dropped[which].double().mean().item()
        assert share == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / 100_000))
    rates = DropRates(gamma=0.4, q=0.5, guidance=1.0)
    whole = draw_guided_drops(is_low, is_known, index, rates=rates, seed=4)
    assert torch.equal(whole, draw_drops(is_low, index, rate=0.4, seed=4))


def test_a_draw_depends_on_the_token_and_not_on_its_place_in_the_tensor():
    index = torch.randperm(5000)
    everywhere = torch.ones(5000, dtype=torch.bool)
    shuffled = draw_drops(everywhere, index, rate=0.5, seed=4)
    in_order = draw_drops(everywhere, torch.arange(5000), rate=0.5, seed=4)
    assert torch.equal(shuffled, in_order[index])


def test_a_higher_rate_drops_a_superset():
    index = torch.arange(5000)
    everywhere = torch.ones(5000, dtype=torch.bool)
    few, many = (draw_drops(everywhere, index, rate=r, seed=4) for r in (0.2, 0.6))
    assert (many | ~few).all()


def test_keys_are_a_bijection_and_streams_differ():
    index = torch.arange(100_000) + 2**40
    keys = token_keys(index, seed=1, stream=1)
    assert len(keys.unique()) == 100_000
    assert not torch.equal(keys, token_keys(index, seed=1, stream=2))
    assert not torch.equal(keys, token_keys(index, seed=2, stream=1))


def test_keys_are_those_of_the_published_mix():
    def splitmix64_finaliser(x: int) -> int:
        mask = (1 << 64) - 1
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    keys = token_keys(torch.arange(50), seed=3, stream=2).tolist()
    offset = _mix_int(_mix_int(3) ^ (2 * _GOLDEN & ((1 << 64) - 1)))
    for i, key in enumerate(keys):
        assert key % (1 << 64) == splitmix64_finaliser((offset + i) % (1 << 64))


def test_random_numbers_are_uniform():
    keys = token_keys(torch.arange(100_000), seed=8, stream=1)
    uniform = uniform_from_keys(keys)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    histogram = torch.histc(uniform.float(), bins=20, min=0, max=1)
    assert (histogram - 5000).abs().max() < 5 * math.sqrt(5000)
    integers = integers_from_keys(keys, high=7)
    assert (torch.bincount(integers, minlength=7) - 100_000 / 7).abs().max() < 600


def make_masked() -> tuple[torch.Tensor, torch.Tensor]:
    """Dropped tokens and positions of 6 rows of 24 tokens, documents of uneven length."""
    generator = torch.Generator().manual_seed(2)
    dropped = torch.rand(6, 24, generator=generator) < 0.08
    positions = torch.empty(6, 24, dtype=torch.int64)
    for row in range(6):
        starts = torch.rand(24, generator=generator) < 0.1 * row
        start = 0
        for place in range(24):
            start = place if starts[place] else start
            positions[row, place] = place - start
    return dropped, positions


def masked_on_rank() -> torch.Tensor:
    dist.init_process_group("gloo")
    dropped, positions = make_masked()
    shard = 24 // dist.get_world_size()
    own = slice(dist.get_rank() * shard, (dist.get_rank() + 1) * shard)
    return masked_contexts(dropped[:, own], positions[:, own], sp_group=dist.group.WORLD)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_context_is_masked_behind_a_drop_of_its_own_document(world_size):
    dropped, positions = make_masked()
    expected = torch.zeros(6, 24, dtype=torch.bool)
    for row in range(6):
        for place in range(24):
            start = place - int(positions[row, place])
            expected[row, place] = dropped[row, start : place + 1].any()
    found = torch.cat(run_ranks(masked_on_rank, world_size=world_size), dim=1)
    assert torch.equal(found, expected)
    assert torch.equal(masked_contexts(dropped, positions), expected)
    assert 20 < int(expected.sum()) < 120
