"""Random tokens in place of inputs, losses weighted by entropy, and rates by sample."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.training.layouts import SEQUENCE_TOKENS, VOCAB_SIZE, UnevenPack, tiny_recipe
from tests.training.test_baselines import at_random, batches_of_rank
from training.model.inputs import ModelInputs, Scored
from training.regularisers.base import Regulariser, RunParts
from training.regularisers.eaft import EAFT
from training.regularisers.table import build_regulariser
from training.regularisers.token_replacement import TokenReplacement
from training.run.forward import forward_micro_batch

REPLACEMENT = TokenReplacement(rate=0.3, seed=5, vocab_size=VOCAB_SIZE)


def built(**changes: Any) -> Regulariser:
    engine: Any = SimpleNamespace(hidden_size=16, vocab_size=VOCAB_SIZE)
    pack: Any = UnevenPack()
    return build_regulariser(tiny_recipe(**changes), RunParts(engine, pack, ()))


def test_targets_become_random_tokens_at_their_rate_as_inputs_alone() -> None:
    (batch,) = batches_of_rank(0, 1, num_samples=400)
    before = ModelInputs.of(batch)
    after = REPLACEMENT.change_inputs(before, batch, 0)
    is_replaced = REPLACEMENT.is_replaced_BS(batch)
    assert torch.equal(after.targets_BS, before.targets_BS)
    assert torch.equal(after.ids_BS[~is_replaced], before.ids_BS[~is_replaced])
    own = batch.is_target_token_BP[:, :-1]
    assert not (is_replaced & ~own).any()
    assert float(is_replaced[own].double().mean()) == pytest.approx(0.3, abs=0.02)
    counts = after.ids_BS[is_replaced].bincount(minlength=VOCAB_SIZE)
    assert len(counts) == VOCAB_SIZE
    assert float(counts.double().std() / counts.double().mean()) < 0.3  # of about 25 each


def test_a_shard_has_its_part_of_the_replaced_tokens() -> None:
    (whole,) = batches_of_rank(0, 1)
    expected = REPLACEMENT.change_inputs(ModelInputs.of(whole), whole, 0).ids_BS
    for rank in range(2):
        (batch,) = batches_of_rank(rank, 2)
        own = slice(rank * SEQUENCE_TOKENS // 2, (rank + 1) * SEQUENCE_TOKENS // 2)
        found = REPLACEMENT.change_inputs(ModelInputs.of(batch), batch, 0).ids_BS
        assert torch.equal(found, expected[:, own])


@pytest.mark.parametrize("replace", ["zero", "random_token"])
def test_beside_token_dropout_each_draws_as_alone_and_a_replaced_token_stays(replace: str) -> None:
    (batch,) = batches_of_rank(0, 1)
    settings = {"dropout__replace": replace, "baseline__token_replacement": 0.3, "seed": 5}
    alone, both = (
        built(regularisers=["random_token_dropout", *others], **settings)
        for others in ([], ["token_replacement"])
    )
    for regulariser in (alone, both):
        step: Any = SimpleNamespace(batches=[batch], trained_frac=0.5)
        regulariser.begin_step(step)
    dropped, found = (each.change_inputs(ModelInputs.of(batch), batch, 0) for each in (alone, both))
    replaced = REPLACEMENT.change_inputs(ModelInputs.of(batch), batch, 0)
    is_replaced = REPLACEMENT.is_replaced_BS(batch)
    assert torch.equal(found.ids_BS, torch.where(is_replaced, replaced.ids_BS, dropped.ids_BS))
    if replace == "zero":
        assert found.replaced_BS is not None
        assert dropped.replaced_BS is not None
        assert (dropped.replaced_BS & is_replaced).any()
        assert torch.equal(found.replaced_BS, dropped.replaced_BS & ~is_replaced)


@pytest.mark.parametrize(
    ("side", "expected"), [("high", [0.0, 0.5, 1.0]), ("low", [1.0, 0.5, 0.0])]
)
def test_a_loss_counts_by_its_entropy(side: Any, expected: list[float]) -> None:
    (batch,) = batches_of_rank(0, 1)
    entropy = torch.full(batch.ids_BS.shape, 1.5)
    entropy[:, ::3], entropy[:, 2::3] = 0.0, 7.0
    nll = torch.rand(batch.ids_BS.shape, requires_grad=True)
    engine: Any = SimpleNamespace(score=lambda inputs: Scored(nll, entropy))
    regulariser = EAFT(full_nats=3.0, side=side)
    forward = forward_micro_batch(engine, batch, regulariser, 0)
    weights = torch.tensor(expected).repeat(11)[:SEQUENCE_TOKENS] * batch.is_target_BS
    assert float(forward.loss_sum.detach()) == pytest.approx(float((weights * nll.detach()).sum()))
    forward.loss_sum.backward()
    assert nll.grad is not None
    torch.testing.assert_close(nll.grad, weights)
    assert torch.equal(forward.in_loss_BS, batch.is_target_BS)  # the logged loss is of all


def test_the_rate_of_each_sample_is_its_own_and_half_on_average() -> None:
    recipe = tiny_recipe(
        regulariser="random_token_dropout",
        dropout={"max_rate": 0.8, "quantile": 1.0, "sample_rates": "uniform"}
        | {"curriculum": {"kind": "constant"}},
    )
    (batch,) = batches_of_rank(0, 1, num_samples=400)
    dropout = at_random(recipe, [batch])
    assert dropout.rate_asked == pytest.approx(0.4)
    own = batch.is_target_token_BP
    shares = (dropout.dropped_BP[0] & own).sum(dim=1) / own.sum(dim=1)
    assert float(shares.mean()) == pytest.approx(0.4, abs=0.04)
    assert float(shares.std()) > 0.2  # of U(0, 0.8) it is 0.23; with one rate it were 0.1
