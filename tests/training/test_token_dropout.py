"""What stands in for a dropped token, and nothing else, changes."""

from __future__ import annotations

import math

import pytest
import torch

from tests.training.layouts import VOCAB_SIZE, UnevenPack, tiny_recipe
from training.data.stream import MicroBatch, SampleStream
from training.dropout.entropy_source import EntropySource
from training.dropout.policy import choose_drops, gamma_at, masked_input, plan_dropout
from training.entrodrop.mask import select_low_tokens
from training.ranks.dist import Layout


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


class NoEntropies(EntropySource):
    """Of which nothing may be asked."""

    def of_step(self, batches: list[MicroBatch]) -> torch.Tensor:
        raise AssertionError("random dropout asked for entropies")


def every_third(batch: MicroBatch) -> torch.Tensor:
    return batch.token_index_BS1[:, :-1] % 3 == 0


def test_zero_leaves_the_ids_and_names_the_embeddings():
    batch = batch_of_rank(0, 1)
    drops = every_third(batch)
    ids, zeroed = masked_input(batch, drops, tiny_recipe(), vocab_size=VOCAB_SIZE)
    assert torch.equal(ids, batch.ids_BS)
    assert torch.equal(zeroed, drops)


def test_mask_token_replaces_dropped_ids_alone():
    batch = batch_of_rank(0, 1)
    drops = every_third(batch)
    recipe = tiny_recipe(dropout__replace="mask_token", dropout__mask_token_id=7)
    ids, zeroed = masked_input(batch, drops, recipe, vocab_size=VOCAB_SIZE)
    assert zeroed is None
    assert (ids[drops] == 7).all()
    assert torch.equal(ids[~drops], batch.ids_BS[~drops])


def test_random_tokens_are_valid_and_the_same_on_any_layout():
    recipe = tiny_recipe(dropout__replace="random_token")
    whole = batch_of_rank(0, 1)
    drops = every_third(whole)
    ids, _ = masked_input(whole, drops, recipe, vocab_size=VOCAB_SIZE)
    assert torch.equal(ids[~drops], whole.ids_BS[~drops])
    assert ((ids >= 0) & (ids < VOCAB_SIZE)).all()
    assert (ids[drops] != whole.ids_BS[drops]).double().mean() > 0.9
    shards = [batch_of_rank(rank, 2) for rank in range(2)]
    found = [masked_input(s, every_third(s), recipe, vocab_size=VOCAB_SIZE)[0] for s in shards]
    assert torch.equal(torch.cat(found, dim=1), ids)


def test_gamma_follows_the_curriculum_and_is_nothing_without_the_method():
    rising = tiny_recipe(dropout__curriculum={"kind": "linear"}, dropout__max_rate=0.4)
    assert [gamma_at(rising, progress=p) for p in (0.0, 0.5, 1.0)] == [0.0, 0.2, 0.4]
    assert gamma_at(tiny_recipe(regulariser="none"), progress=1.0) == 0.0


def test_high_side_drops_exactly_the_tokens_of_highest_entropy():
    batch = batch_of_rank(0, 1)
    is_target_BS1 = batch.is_target_token_BS1
    values_BS1 = torch.rand(is_target_BS1.shape, generator=torch.Generator().manual_seed(0))
    values_BS1[values_BS1 < 0.2] = 0.0  # ties at zero, as late in training
    entropy_BS1 = torch.where(is_target_BS1, values_BS1, math.inf)
    num_targets = int(is_target_BS1[:, 1:].sum())
    dropped = {}
    for side in ("low", "high"):
        recipe = tiny_recipe(dropout__side=side, dropout__quantile=0.25)
        found = choose_drops(entropy_BS1, [batch], recipe, gamma=1.0, num_targets=num_targets)
        dropped[side] = found.target_drops_BS(0)
        of_dropped = entropy_BS1[:, 1:][dropped[side]]
        assert len(of_dropped) == math.ceil(0.25 * num_targets)
        rest = entropy_BS1[:, 1:][is_target_BS1[:, 1:] & ~dropped[side]]
        assert of_dropped.max() <= rest.min() if side == "low" else of_dropped.min() >= rest.max()
        outermost = of_dropped.max() if side == "low" else of_dropped.min()
        assert found.threshold_nats == outermost.item()
    assert not (dropped["low"] & dropped["high"]).any()


def test_without_guidance_the_tokens_are_those_of_random_dropout():
    batch = batch_of_rank(0, 1)
    rate = {"dropout__max_rate": 0.8, "dropout__curriculum": {"kind": "constant"}}
    entropy_BS1 = torch.where(batch.is_target_token_BS1, batch.token_index_BS1 % 7.0, math.inf)
    num_targets = int(batch.is_target_token_BS1[:, 1:].sum())
    unguided = choose_drops(
        entropy_BS1,
        [batch],
        tiny_recipe(dropout__guidance=0.0, **rate),
        gamma=0.8,
        num_targets=num_targets,
    )
    at_random = plan_dropout(
        NoEntropies(),
        [batch],
        tiny_recipe(regulariser="random_token_dropout", **rate),
        progress=0.5,
        num_targets=num_targets,
    )
    assert at_random is not None
    assert torch.equal(unguided.dropped_BS1[0], at_random.dropped_BS1[0])
    assert at_random.dropped_BS1[0].any()
    assert unguided.rate_asked == at_random.rate_asked == 0.4


def test_with_some_guidance_the_highest_drop_more_often_on_the_high_side():
    batch = batch_of_rank(0, 1)
    values_BS1 = (batch.token_index_BS1 % 7).float()
    entropy_BS1 = torch.where(batch.is_target_token_BS1, values_BS1, math.inf)
    num_targets = int(batch.is_target_token_BS1[:, 1:].sum())
    dropped = {}
    for side in ("low", "high"):
        recipe = tiny_recipe(dropout__side=side, dropout__guidance=0.5)
        found = choose_drops(entropy_BS1, [batch], recipe, gamma=1.0, num_targets=num_targets)
        dropped[side] = entropy_BS1[found.dropped_BS1[0]]
        assert dropped[side].isfinite().all()
        assert len(dropped[side]) == pytest.approx(0.5 * num_targets, rel=0.2)
        assert set(dropped[side].tolist()) == set(range(7)), "none is spared"
    assert dropped["low"].mean() < 2.7 < 3.3 < dropped["high"].mean()


class SomeEntropies(EntropySource):
    """A value for each target."""

    def of_step(self, batches: list[MicroBatch]) -> torch.Tensor:
        (batch,) = batches
        return torch.where(batch.is_target_token_BS1, batch.token_index_BS1 % 7.0, math.inf)


def test_nothing_drops_by_a_threshold_of_a_corpus_without_values():
    """In a cache's first epoch, also where a sample that comes twice has a value already."""
    batch = batch_of_rank(0, 1)
    empty = select_low_tokens(torch.empty(0), torch.empty(0, dtype=torch.int64), q=0.5, seed=1)
    found = plan_dropout(
        SomeEntropies(),
        [batch],
        tiny_recipe(dropout__guidance=0.5, entropy__source="cache", entropy__scope="corpus"),
        progress=1.0,
        num_targets=int(batch.is_target_token_BS1[:, 1:].sum()),
        corpus_low=empty,
    )
    assert found is not None
    assert not found.dropped_BS1[0].any()
    assert found.rate_asked == 0.0
    assert found.threshold_nats is None
