"""Which tokens of a step drop: the low ones of the step or of the corpus, by a draw.

P tokens of this rank's sequence shard and the one after it, R rows of all micro-batches.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from training.config.dropout import Dropout
from training.data.stream import MicroBatch
from training.entrodrop.curriculum import curriculum_strength
from training.entrodrop.mask import (
    DropRates,
    LowSet,
    draw_drops,
    draw_guided_drops,
    sample_scales,
    select_low_tokens,
    soft_drop_rates,
)
from training.ranks.dist import sum_over_ranks
from training.regularisers.base import StepDropout


def gamma_at(settings: Dropout, trained_frac: float) -> float:
    """Drop probability of low tokens, at guidance 1, at a point of the run."""
    curve = settings.curriculum
    return settings.max_rate * curriculum_strength(
        trained_frac, kind=curve.kind, midpoint=curve.midpoint, steepness=curve.steepness
    )


def drop_rates(settings: Dropout, *, gamma: float) -> DropRates:
    """Of EntroDrop at a point of the curriculum."""
    return DropRates(gamma, q=settings.quantile, guidance=settings.guidance)


def drop_low_of_step(
    entropy_RP: Tensor,
    batches: list[MicroBatch],
    settings: Dropout,
    *,
    seed: int,
    gamma: float,
    num_targets: int,
) -> StepDropout:
    """The drops of a step of EntroDrop, given the entropies of its tokens.

    With `dropout.side: high` the tokens of highest entropy take the place of the lowest.

    Args:
        entropy_RP: fp32 `[R, P]`, rows of all micro-batches; +inf at tokens that are not a target
            or have no value.
        num_targets: of the whole global batch, which is the population.
    """
    is_high, rates = settings.side == "high", drop_rates(settings, gamma=gamma)
    if is_high:  # 0.0 - x: no negative zeros; tokens without a value stay at +inf
        entropy_RP = torch.where(entropy_RP.isfinite(), 0.0 - entropy_RP, math.inf)
    index_RP = torch.cat([batch.token_index_BP for batch in batches])
    low = select_low_tokens(entropy_RP[:, 1:], index_RP[:, 1:], q=rates.q, seed=seed)
    scale_R1, is_known_RP = sample_scales_of(settings, batches, seed=seed), entropy_RP.isfinite()
    if settings.softness is None:
        is_low_RP = low.contains(entropy_RP, index_RP)
        dropped_RP = draw_guided_drops(
            is_low_RP, is_known_RP, index_RP, rates=rates, seed=seed, scale=scale_R1
        )
    else:
        rate_RP = soft_drop_rates(
            entropy_RP, threshold=low.quantile.threshold, softness=settings.softness, rates=rates
        )
        dropped_RP = draw_drops(is_known_RP, index_RP, rate=rate_RP * scale_R1, seed=seed)
    dropout = _of_step(dropped_RP, low, batches, rates=rates, num_targets=num_targets)
    threshold = dropout.threshold_nats
    return replace(
        dropout,
        rate_asked=dropout.rate_asked * mean_scale(settings),
        threshold_nats=0.0 - threshold if is_high and threshold is not None else threshold,
    )


def mean_scale(settings: Dropout) -> float:
    """Of a sample's drop rates."""
    return 0.5 if settings.sample_rates == "uniform" else 1.0


def sample_scales_of(settings: Dropout, batches: list[MicroBatch], *, seed: int) -> Tensor | float:
    """The factor of the rates in each row of all batches, fp64 `[R, 1]`, or 1 for all."""
    if settings.sample_rates == "equal":
        return 1.0
    visits = [visit for batch in batches for visit in batch.visits]
    visits_R1 = torch.tensor(visits)[:, None]
    return sample_scales(visits_R1.to(batches[0].ids_BS.device, non_blocking=True), seed=seed)


def drop_lowest(
    value_RP: Tensor,
    batches: list[MicroBatch],
    *,
    rates: DropRates,
    seed: int,
    num_targets: int,
) -> StepDropout:
    """The share `rates.q` of lowest values over the whole step is low."""
    index_RP = torch.cat([batch.token_index_BP for batch in batches])
    low = select_low_tokens(value_RP[:, 1:], index_RP[:, 1:], q=rates.q, seed=seed)
    dropped_RP = draw_guided_drops(
        low.contains(value_RP, index_RP),
        value_RP.isfinite(),
        index_RP,
        rates=rates,
        seed=seed,
    )
    return _of_step(dropped_RP, low, batches, rates=rates, num_targets=num_targets)


def _of_step(
    dropped_RP: Tensor,
    low: LowSet,
    batches: list[MicroBatch],
    *,
    rates: DropRates,
    num_targets: int,
) -> StepDropout:
    share_known = low.quantile.population / max(num_targets, 1)
    return StepDropout(
        gamma=rates.gamma,
        rate_asked=rates.mean * share_known,
        threshold_nats=low.quantile.threshold if low.quantile.num_low else None,
        dropped_BP=dropped_RP.split(len(batches[0].visits)),
    )


def drop_low_of_corpus(
    entropy_RP: Tensor,
    batches: list[MicroBatch],
    low: LowSet,
    settings: Dropout,
    *,
    seed: int,
    gamma: float,
    num_targets: int,
) -> StepDropout:
    """Tokens that are low among all of the corpus are low."""
    rates = drop_rates(settings, gamma=gamma)
    is_known_RP = entropy_RP.isfinite()
    (num_known,) = sum_over_ranks(is_known_RP[:, 1:].sum()[None])
    share_known = num_known / max(num_targets, 1)
    is_low_RP = low.contains(entropy_RP, torch.cat([batch.corpus_index_BP for batch in batches]))
    index_RP = torch.cat([batch.token_index_BP for batch in batches])
    threshold = low.quantile.threshold
    has_values = math.isfinite(threshold)  # a cache has none in the first epoch
    dropped_RP = draw_guided_drops(
        is_low_RP,
        is_known_RP & has_values,
        index_RP,
        rates=rates,
        seed=seed,
        scale=sample_scales_of(settings, batches, seed=seed),
    )
    return StepDropout(
        gamma=rates.gamma,
        rate_asked=rates.mean * share_known * has_values * mean_scale(settings),
        threshold_nats=threshold if has_values else None,
        dropped_BP=dropped_RP.split(len(batches[0].visits)),
    )
