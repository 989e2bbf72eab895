"""What stands in for a dropped token, and nothing else, changes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.training.layouts import VOCAB_SIZE, UnevenPack, tiny_recipe
from training.config.recipe import Recipe
from training.data.stream import MicroBatch, SampleStream
from training.entrodrop.mask import select_low_tokens
from training.ranks.dist import Layout
from training.regularisers.base import Step, StepDropout
from training.regularisers.baselines import RandomTokenDropout
from training.regularisers.drop_sets import (
    drop_low_of_corpus,
    drop_low_of_step,
    gamma_at,
)
from training.regularisers.replacement import masked_input


def batch_of_rank(rank: int, sp_size: int) -> MicroBatch:
    stream = SampleStream(
        pack=UnevenPack(),
        split="train",
        layout=Layout(rank, sp_size, sp_size, torch.device("cpu")),
        total_samples=4,
        samples_per_step=4,
        micro_batch_samples=4,
    )
    return stream.step(0)[0]


def every_third(batch: MicroBatch) -> torch.Tensor:
    return batch.token_index_BP[:, :-1] % 3 == 0


def masked(
    batch: MicroBatch, drops: torch.Tensor, recipe: Recipe
) -> tuple[torch.Tensor, torch.Tensor | None]:
    return masked_input(batch, drops, recipe.dropout, seed=recipe.seed, vocab_size=VOCAB_SIZE)


def drop_low(
    entropy: torch.Tensor, batch: MicroBatch, recipe: Recipe, *, gamma: float
) -> StepDropout:
    num_targets = int(batch.is_target_BS.sum())
    return drop_low_of_step(
        entropy, [batch], recipe.dropout, seed=recipe.seed, gamma=gamma, num_targets=num_targets
    )


def test_zero_leaves_the_ids_and_names_the_embeddings():
    batch = batch_of_rank(0, 1)
    drops = every_third(batch)
    ids, zeroed = masked(batch, drops, tiny_recipe())
    assert torch.equal(ids, batch.ids_BS)
    assert torch.equal(zeroed, drops)


def test_mask_token_replaces_dropped_ids_alone():
    batch = batch_of_rank(0, 1)
    drops = every_third(batch)
    recipe = tiny_recipe(dropout__replace="mask_token", dropout__mask_token_id=7)
    ids, zeroed = masked(batch, drops, recipe)
    assert zeroed is None
    assert (ids[drops] == 7).all()
    assert torch.equal(ids[~drops], batch.ids_BS[~drops])


def test_random_tokens_are_valid_and_the_same_on_any_layout():
    recipe = tiny_recipe(dropout__replace="random_token")
    whole = batch_of_rank(0, 1)
    drops = every_third(whole)
    ids, _ = masked(whole, drops, recipe)
    assert torch.equal(ids[~drops], whole.ids_BS[~drops])
    assert ((ids >= 0) & (ids < VOCAB_SIZE)).all()
    assert (ids[drops] != whole.ids_BS[drops]).double().mean() > 0.9
    shards = [batch_of_rank(rank, 2) for rank in range(2)]
    found = [masked(s, every_third(s), recipe)[0] for s in shards]
    assert torch.equal(torch.cat(found, dim=1), ids)


def test_gamma_follows_the_curriculum():
    rising = tiny_recipe(dropout__curriculum={"kind": "linear"}, dropout__max_rate=0.4).dropout
    assert [gamma_at(rising, trained_frac) for trained_frac in (0.0, 0.5, 1.0)] == [0.0, 0.2, 0.4]


def test_high_side_drops_exactly_the_tokens_of_highest_entropy():
    batch = batch_of_rank(0, 1)
    is_target_BP = batch.is_target_token_BP
    values_BP = torch.rand(is_target_BP.shape, generator=torch.Generator().manual_seed(0))
    values_BP[values_BP < 0.2] = 0.0  # ties at zero, as late in training
    entropy_BP = torch.where(is_target_BP, values_BP, math.inf)
    num_targets = int(is_target_BP[:, 1:].sum())
    dropped = {}
    for side in ("low", "high"):
        recipe = tiny_recipe(dropout__side=side, dropout__quantile=0.25)
        found = drop_low(entropy_BP, batch, recipe, gamma=1.0)
        dropped[side] = found.dropped_BP[0][:, 1:]
        of_dropped = entropy_BP[:, 1:][dropped[side]]
        assert len(of_dropped) == math.ceil(0.25 * num_targets)
        rest = entropy_BP[:, 1:][is_target_BP[:, 1:] & ~dropped[side]]
        assert of_dropped.max() <= rest.min() if side == "low" else of_dropped.min() >= rest.max()
        outermost = of_dropped.max() if side == "low" else of_dropped.min()
        assert found.threshold_nats == outermost.item()
    assert not (dropped["low"] & dropped["high"]).any()


def test_without_guidance_the_tokens_are_those_of_random_dropout():
    batch = batch_of_rank(0, 1)
    rate = {"dropout__max_rate": 0.8, "dropout__curriculum": {"kind": "constant"}}
    entropy_BP = torch.where(batch.is_target_token_BP, batch.token_index_BP % 7.0, math.inf)
    unguided = drop_low(entropy_BP, batch, tiny_recipe(dropout__guidance=0.0, **rate), gamma=0.8)
    recipe = tiny_recipe(regulariser="random_token_dropout", **rate)
    stream: Any = None
    at_random = RandomTokenDropout(
        recipe.dropout, where="input", seed=recipe.seed, vocab_size=VOCAB_SIZE
    ).choose(Step([batch], stream, 0, 0.5, batch.num_targets))
    assert torch.equal(unguided.dropped_BP[0], at_random.dropped_BP[0])
    assert at_random.dropped_BP[0].any()
    assert unguided.rate_asked == at_random.rate_asked == 0.4


def test_with_some_guidance_the_highest_drop_more_often_on_the_high_side():
    batch = batch_of_rank(0, 1)
    values_BP = (batch.token_index_BP % 7).float()
    entropy_BP = torch.where(batch.is_target_token_BP, values_BP, math.inf)
    num_targets = int(batch.is_target_token_BP[:, 1:].sum())
    dropped = {}
    for side in ("low", "high"):
        recipe = tiny_recipe(dropout__side=side, dropout__guidance=0.5)
        found = drop_low(entropy_BP, batch, recipe, gamma=1.0)
        dropped[side] = entropy_BP[found.dropped_BP[0]]
        assert dropped[side].isfinite().all()
        assert len(dropped[side]) == pytest.approx(0.5 * num_targets, rel=0.2)
        assert set(dropped[side].tolist()) == set(range(7)), "none is spared"
    assert dropped["low"].mean() < 2.7 < 3.3 < dropped["high"].mean()


def test_nothing_drops_by_a_threshold_of_a_corpus_without_values():
    """In a cache's first epoch, also where a sample that comes twice has a value already."""
    batch = batch_of_rank(0, 1)
    empty = select_low_tokens(torch.empty(0), torch.empty(0, dtype=torch.int64), q=0.5, seed=1)
    recipe = tiny_recipe(dropout__guidance=0.5, entropy__source="cache", entropy__scope="corpus")
    found = drop_low_of_corpus(
        torch.where(batch.is_target_token_BP, batch.token_index_BP % 7.0, math.inf),
        [batch],
        empty,
        recipe.dropout,
        seed=recipe.seed,
        gamma=0.6,
        num_targets=batch.num_targets,
    )
    assert not found.dropped_BP[0].any()
    assert found.rate_asked == 0.0
    assert found.threshold_nats is None
