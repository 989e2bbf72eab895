"""One step's token dropout: probe, global quantile, draw, and what each micro-batch does with it.

B rows, S tokens of this rank's sequence shard.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from training.config.recipe import Recipe
from training.data.stream import MicroBatch
from training.dropout.entropy_source import EntropySource
from training.entrodrop.counter_rng import REPLACE_STREAM, integers_from_keys, token_keys
from training.entrodrop.curriculum import curriculum_strength
from training.entrodrop.mask import (
    DropRates,
    LowSet,
    draw_drops,
    draw_guided_drops,
    select_low_tokens,
)
from training.entrodrop.quantile import Quantile
from training.ranks.dist import sum_over_ranks


@dataclass(frozen=True)
class SavedThreshold:
    """Who was low, as a checkpoint keeps it."""

    nats: float
    last_tie_key: int

    @classmethod
    def of(cls, low: LowSet) -> SavedThreshold:
        return cls(low.quantile.threshold, low.last_tie_key)

    def low_set(self, *, seed: int) -> LowSet:
        """The same tokens; how many there were is not kept."""
        quantile = Quantile(self.nats, 0, 0, 0, 0)
        return LowSet(quantile, self.last_tie_key, seed)


@dataclass(frozen=True)
class StepDropout:
    """Which tokens of the step drop, in each of this rank's micro-batches."""

    where: Literal["input", "loss", "both"]
    gamma: float
    """Drop probability of a low token at this point of the curriculum, at guidance 1."""
    rate_asked: float
    """Share of all targets that drop on average: gamma * quantile, of those with a value."""
    threshold_nats: float | None
    dropped_BS1: list[Tensor]
    """Bool `[B, S + 1]` a micro-batch: the shard's tokens and the one behind it."""

    def input_drops_BS(self, micro_step: int) -> Tensor:
        """Tokens of the shard whose embedding is replaced."""
        return self.dropped_BS1[micro_step][:, :-1]

    def target_drops_BS(self, micro_step: int) -> Tensor:
        """Positions whose target drops: the token behind each."""
        return self.dropped_BS1[micro_step][:, 1:]


def gamma_at(recipe: Recipe, *, progress: float) -> float:
    """Drop probability of low tokens, at guidance 1, at a point of the run; 0 where none drops."""
    if recipe.regulariser not in ("entrodrop", "random_token_dropout"):
        return 0.0
    curve = recipe.dropout.curriculum
    return recipe.dropout.max_rate * curriculum_strength(
        progress, kind=curve.kind, midpoint=curve.midpoint, steepness=curve.steepness
    )


def drop_rates(recipe: Recipe, *, gamma: float) -> DropRates:
    """Of EntroDrop at a point of the curriculum."""
    return DropRates(gamma, q=recipe.dropout.quantile, guidance=recipe.dropout.guidance)


def plan_dropout(
    source: EntropySource,
    batches: list[MicroBatch],
    recipe: Recipe,
    *,
    progress: float,
    num_targets: int,
    corpus_low: LowSet | None = None,
) -> StepDropout | None:
    """Decide a step's drops before its forward pass.

    Returns None while gamma is 0; that depends on progress alone, so every rank takes the same
    branch.

    Args:
        num_targets: of the whole global batch, which is the population.
        corpus_low: who is low among all samples; the population is then the corpus.
    """
    if recipe.regulariser == "rho1":  # only the share of greatest excess loss stays in the loss
        return _drop_lowest(
            source.of_step(batches),
            batches,
            where="loss",
            rates=DropRates(gamma=1.0, q=1.0 - recipe.baseline.rho1_share),
            seed=recipe.seed,
            num_targets=num_targets,
        )
    gamma = gamma_at(recipe, progress=progress)
    if gamma == 0.0:
        return None
    if recipe.regulariser == "random_token_dropout":
        return _drop_at_random(batches, recipe, gamma=gamma)
    entropy_RS1 = source.of_step(batches)
    if corpus_low is not None:
        return _drop_low_of_corpus(
            entropy_RS1, batches, recipe, corpus_low, gamma=gamma, num_targets=num_targets
        )
    return choose_drops(entropy_RS1, batches, recipe, gamma=gamma, num_targets=num_targets)


def choose_drops(
    entropy_RS1: Tensor,
    batches: list[MicroBatch],
    recipe: Recipe,
    *,
    gamma: float,
    num_targets: int,
) -> StepDropout:
    """The drops of a step of EntroDrop, given the entropies of its tokens.

    With `dropout.side: high` the tokens of highest entropy take the place of the lowest.

    Args:
        entropy_RS1: fp32 `[R, S + 1]`, rows of all micro-batches; +inf at tokens that are no
            target or have no value.
        num_targets: of the whole global batch.
    """
    is_high = recipe.dropout.side == "high"
    if is_high:  # 0.0 - x: no negative zeros; tokens without a value stay at +inf
        entropy_RS1 = torch.where(entropy_RS1.isfinite(), 0.0 - entropy_RS1, math.inf)
    dropout = _drop_lowest(
        entropy_RS1,
        batches,
        where=recipe.dropout.where,
        rates=drop_rates(recipe, gamma=gamma),
        seed=recipe.seed,
        num_targets=num_targets,
    )
    if is_high and dropout.threshold_nats is not None:
        return replace(dropout, threshold_nats=0.0 - dropout.threshold_nats)
    return dropout


def _drop_lowest(
    value_RS1: Tensor,
    batches: list[MicroBatch],
    *,
    where: Literal["input", "loss", "both"],
    rates: DropRates,
    seed: int,
    num_targets: int,
) -> StepDropout:
    """Low are the share `rates.q` of lowest values over the whole step."""
    index_RS1 = torch.cat([batch.token_index_BS1 for batch in batches])
    low = select_low_tokens(value_RS1[:, 1:], index_RS1[:, 1:], q=rates.q, seed=seed)
    dropped_RS1 = draw_guided_drops(
        low.contains(value_RS1, index_RS1),
        value_RS1.isfinite(),
        index_RS1,
        rates=rates,
        seed=seed,
    )
    share_known = low.quantile.population / max(num_targets, 1)
    return StepDropout(
        where=where,
        gamma=rates.gamma,
        rate_asked=rates.mean * share_known,
        threshold_nats=low.quantile.threshold if low.quantile.num_low else None,
        dropped_BS1=list(dropped_RS1.split(len(batches[0].visits))),
    )


def _drop_low_of_corpus(
    entropy_RS1: Tensor,
    batches: list[MicroBatch],
    recipe: Recipe,
    low: LowSet,
    *,
    gamma: float,
    num_targets: int,
) -> StepDropout:
    """Low are the tokens that are so among all of the corpus."""
    rates = drop_rates(recipe, gamma=gamma)
    is_known_RS1 = entropy_RS1.isfinite()
    (num_known,) = sum_over_ranks(is_known_RS1[:, 1:].sum()[None])
    share_known = num_known / max(num_targets, 1)
    is_low_RS1 = low.contains(entropy_RS1, torch.cat([batch.corpus_index_BS1 for batch in batches]))
    index_RS1 = torch.cat([batch.token_index_BS1 for batch in batches])
    threshold = low.quantile.threshold
    has_values = math.isfinite(threshold)  # a cache has none in the first epoch
    dropped_RS1 = draw_guided_drops(
        is_low_RS1,
        is_known_RS1 & has_values,
        index_RS1,
        rates=rates,
        seed=recipe.seed,
    )
    return StepDropout(
        where=recipe.dropout.where,
        gamma=gamma,
        rate_asked=rates.mean * share_known * has_values,
        threshold_nats=threshold if has_values else None,
        dropped_BS1=list(dropped_RS1.split(len(batches[0].visits))),
    )


def _drop_at_random(batches: list[MicroBatch], recipe: Recipe, *, gamma: float) -> StepDropout:
    """The baseline: any target, whatever its entropy, at EntroDrop's mean rate."""
    rate = gamma * recipe.dropout.quantile
    return StepDropout(
        where=recipe.dropout.where,
        gamma=gamma,
        rate_asked=rate,
        threshold_nats=None,
        dropped_BS1=[
            draw_drops(
                batch.is_target_token_BS1, batch.token_index_BS1, rate=rate, seed=recipe.seed
            )
            for batch in batches
        ],
    )


def check_mask_token(recipe: Recipe, *, vocab_size: int) -> None:
    """Refuse a mask token that the embedding does not have.

    Raises:
        ValueError: naming the ids that it has.
    """
    mask_token_id = recipe.dropout.mask_token_id
    if mask_token_id is not None and mask_token_id >= vocab_size:
        raise ValueError(
            f"dropout.mask_token_id {mask_token_id}: the model's ids are 0 to {vocab_size - 1}"
        )


def masked_input(
    batch: MicroBatch, drops_BS: Tensor, recipe: Recipe, *, vocab_size: int
) -> tuple[Tensor, Tensor | None]:
    """Token ids to embed, and which embeddings the model itself replaces (by 0 or the mean)."""
    replace = recipe.dropout.replace
    if replace in ("zero", "mean"):
        return batch.ids_BS, drops_BS
    if replace == "mask_token":
        return batch.ids_BS.masked_fill(drops_BS, recipe.dropout.mask_token_id or 0), None
    keys_BS = token_keys(batch.token_index_BS1[:, :-1], seed=recipe.seed, stream=REPLACE_STREAM)
    random_BS = integers_from_keys(keys_BS, high=vocab_size)
    return torch.where(drops_BS, random_BS, batch.ids_BS), None
