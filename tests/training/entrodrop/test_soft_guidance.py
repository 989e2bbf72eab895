"""Drop rates that follow entropy smoothly, and rates of each sample's own."""

from __future__ import annotations

import math

import pytest
import torch

from training.entrodrop.mask import (
    DropRates,
    draw_guided_drops,
    sample_scales,
    select_low_tokens,
    soft_drop_rates,
)

ROWS, LENGTH, GAMMA, Q = 40, 101, 0.4, 0.5
RATES = DropRates(GAMMA, q=Q)


@pytest.fixture
def entropy() -> torch.Tensor:
    """Rows of P; the first of each is counted by the rank before, and every tenth is no target."""
    generator = torch.Generator().manual_seed(0)
    values = torch.empty(ROWS, LENGTH).exponential_(generator=generator)
    values[:, ::10] = math.inf
    values[:3] = 0.0
    return values


def rates_of(entropy: torch.Tensor, softness: float, rates: DropRates = RATES) -> torch.Tensor:
    index = torch.arange(entropy.numel()).view_as(entropy)
    low = select_low_tokens(entropy[:, 1:], index[:, 1:], q=rates.q, seed=1)
    return soft_drop_rates(
        entropy, threshold=low.quantile.threshold, softness=softness, rates=rates
    )


@pytest.mark.parametrize("softness", [0.05, 0.5, 5.0])
@pytest.mark.parametrize("guidance", [1.0, 0.5])
@pytest.mark.parametrize("is_high", [False, True])
def test_rates_fall_smoothly_to_none_at_zero_at_the_mean_rate(entropy, softness, guidance, is_high):
    rates = DropRates(GAMMA, q=Q, guidance=guidance)
    values = torch.where(entropy.isfinite(), -entropy, math.inf) if is_high else entropy
    found = rates_of(values, softness, rates)
    is_known = values.isfinite()
    assert float(found[:, 1:][is_known[:, 1:]].mean()) == pytest.approx(rates.mean, rel=1e-9)
    assert (found[~is_known] == 0).all()
    assert (found[is_known] > 0).all()
    assert (found[is_known] <= 2 * GAMMA).all()
    order = values[is_known].argsort()
    assert (found[is_known][order].diff() <= 0).all()


def test_they_are_those_of_a_plain_loop(entropy):
    own = [e for row in entropy[:, 1:].tolist() for e in row if math.isfinite(e)]
    threshold = sorted(own)[math.ceil(Q * len(own)) - 1]
    width = 0.5 * sum(own) / len(own)
    weights = [1 / (1 + math.exp((e - threshold) / width)) for e in own]
    expected = [GAMMA * Q * weight * len(own) / sum(weights) for weight in weights]
    found = rates_of(entropy, 0.5)[:, 1:][entropy[:, 1:].isfinite()]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_a_narrow_fall_is_the_two_steps(entropy):
    index = torch.arange(entropy.numel()).view_as(entropy)
    low = select_low_tokens(entropy[:, 1:], index[:, 1:], q=Q, seed=1)
    found = rates_of(entropy, 1e-7)
    is_clear = (entropy != low.quantile.threshold) & entropy.isfinite()
    steps = torch.where(low.contains(entropy, index), GAMMA, 0.0)
    assert torch.allclose(found[is_clear], steps[is_clear].double(), rtol=1e-3)


@pytest.mark.parametrize("value", [0.0, math.inf])
def test_entropies_that_say_nothing_make_no_other_rates(value):
    found = rates_of(torch.full((2, 11), value), 0.5)
    assert (found == (GAMMA * Q if value == 0.0 else 0.0)).all()


def test_scales_are_uniform_and_the_same_for_a_visit_alone():
    scales = sample_scales(torch.arange(4000), seed=3)
    assert 0 <= float(scales.min()) < 0.01
    assert 0.99 < float(scales.max()) < 1
    assert float(scales.mean()) == pytest.approx(0.5, abs=0.02)
    assert torch.equal(sample_scales(torch.tensor([7, 3]), seed=3), scales[[7, 3]])
    assert not torch.equal(sample_scales(torch.arange(4000), seed=4), scales)


def test_a_scale_of_its_own_makes_the_share_that_drops_in_each_row():
    index = torch.arange(200 * 2000).view(200, 2000)
    everything = torch.ones_like(index, dtype=torch.bool)
    scales = sample_scales(torch.arange(200), seed=3)[:, None]
    dropped = draw_guided_drops(
        everything, everything, index, rates=DropRates(0.8, q=1.0), seed=3, scale=scales
    )
    share = dropped.double().mean(dim=1, keepdim=True)
    assert float((share - 0.8 * scales).abs().max()) < 0.05
