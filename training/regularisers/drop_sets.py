"""Which tokens of a step drop: the low ones of the step or of the corpus, by a draw.

P tokens of this rank's sequence shard and the one after it, R rows of all micro-batches.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from training.config.sections import Dropout
from training.data.stream import MicroBatch
from training.entrodrop.curriculum import curriculum_strength
from training.entrodrop.mask import DropRates, LowSet, draw_guided_drops, select_low_tokens
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
    is_high = settings.side == "high"
    if is_high:  # 0.0 - x: no negative zeros; tokens without a value stay at +inf
        entropy_RP = torch.where(entropy_RP.isfinite(), 0.0 - entropy_RP, math.inf)
    dropout = drop_lowest(
        entropy_RP,
        batches,
        rates=drop_rates(settings, gamma=gamma),
        seed=seed,
        num_targets=num_targets,
    )
    if is_high and dropout.threshold_nats is not None:
        return replace(dropout, threshold_nats=0.0 - dropout.threshold_nats)
    return dropout


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
    *,
    seed: int,
    rates: DropRates,
    num_targets: int,
) -> StepDropout:
    """Tokens that are low among all of the corpus are low."""
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
    )
    return StepDropout(
        gamma=rates.gamma,
        rate_asked=rates.mean * share_known * has_values,
        threshold_nats=threshold if has_values else None,
        dropped_BP=dropped_RP.split(len(batches[0].visits)),
    )
