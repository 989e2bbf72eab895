"""The usual regularisers, each against a plain reference."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.training.layouts import SEQUENCE_TOKENS, VOCAB_SIZE, UnevenPack, tiny_recipe
from training.config.recipe import Recipe
from training.data.stream import MicroBatch, SampleStream, piece_lengths
from training.model.causal_lm import CausalLMWithEntropy
from training.model.inputs import ModelInputs, ModelRegularisation
from training.ranks.dist import Layout
from training.regularisers.base import RunParts, SavedThreshold, Step, StepDropout
from training.regularisers.baselines import RandomTokenDropout, Rho1
from training.regularisers.entrodrop import EntroDrop
from training.regularisers.entropy_source import ExcessLoss
from training.regularisers.table import build_regulariser, model_regularisation

D = 16


def batches_of_rank(rank: int, sp_size: int, *, num_samples: int = 8) -> list[MicroBatch]:
    stream = SampleStream(
        pack=UnevenPack(num=num_samples),  # type: ignore[arg-type]
        split="train",
        layout=Layout(rank, sp_size, sp_size, torch.device("cpu")),
        total_samples=num_samples,
        samples_per_step=num_samples,
        micro_batch_samples=num_samples,
    )
    return stream.step(0)


def step_of(batches: list[MicroBatch], *, trained_frac: float = 0.5, num_targets: int = 1) -> Step:
    stream: Any = None
    return Step(batches, stream, 0, trained_frac, num_targets)


def at_random(recipe: Recipe, batches: list[MicroBatch]) -> StepDropout:
    return RandomTokenDropout(
        recipe.dropout, where="input", seed=recipe.seed, vocab_size=VOCAB_SIZE
    ).choose(step_of(batches))


def noise_of(recipe: Recipe, batch: MicroBatch) -> torch.Tensor | None:
    """What the recipe's regulariser adds to the embeddings of a model of D channels."""
    engine: Any = SimpleNamespace(hidden_size=D, vocab_size=VOCAB_SIZE)
    pack: Any = UnevenPack()
    inputs = ModelInputs.of(batch)
    return (
        build_regulariser(recipe, RunParts(engine, pack, ()))
        .change_inputs(inputs, batch, 0)
        .noise_BSD
    )


def test_random_dropout_takes_any_target_at_the_mean_rate_of_the_method() -> None:
    recipe = tiny_recipe(
        regulariser="random_token_dropout", dropout__max_rate=0.6, dropout__quantile=0.5
    )
    (batch,) = batches_of_rank(0, 1, num_samples=400)
    dropout = at_random(recipe, [batch])
    assert dropout.rate_asked == pytest.approx(0.3)
    (dropped,) = dropout.dropped_BP
    assert not (dropped & ~batch.is_target_token_BP).any()
    # Each target is counted once: at the tokens of the shard, which is the whole row here.
    own = batch.is_target_token_BP[:, :-1]
    rate = float(dropped[:, :-1][own].double().mean())
    assert abs(rate - 0.3) < 4 * math.sqrt(0.3 * 0.7 / int(own.sum()))


def test_the_same_tokens_drop_at_random_on_any_layout() -> None:
    recipe = tiny_recipe(regulariser="random_token_dropout")
    found = []
    for sp_size in (1, 2):
        dropped: set[int] = set()
        for rank in range(sp_size):
            batches = batches_of_rank(rank, sp_size)
            dropout = at_random(recipe, batches)
            for batch, drops in zip(batches, dropout.dropped_BP, strict=True):
                dropped |= set(batch.token_index_BP[drops].tolist())
        found.append(dropped)
    assert found[0] == found[1]
    assert len(found[0]) > 10


def test_targets_at_their_own_place_are_the_targets_moved_by_one() -> None:
    (whole,) = batches_of_rank(0, 1)
    assert torch.equal(whole.is_target_token_BP[:, 1:], whole.is_target_BS)
    assert not whole.is_target_token_BP[:, 0].any()
    shards = [batches_of_rank(rank, 2)[0].is_target_token_BP for rank in range(2)]
    half = SEQUENCE_TOKENS // 2
    assert torch.equal(shards[0], whole.is_target_token_BP[:, : half + 1])
    assert torch.equal(shards[1], whole.is_target_token_BP[:, half:])


def test_noise_is_uniform_and_scaled_by_each_document_of_its_own() -> None:
    recipe = tiny_recipe(regulariser="neftune", baseline__neftune_alpha=8.0)
    (batch,) = batches_of_rank(0, 1, num_samples=200)
    noise = noise_of(recipe, batch)
    assert noise is not None
    assert noise.shape == (200, SEQUENCE_TOKENS, D)
    pack = UnevenPack(num=200)
    for row in range(5):  # lengths by a plain loop over positions
        positions = pack.sample(row).position_ids.tolist()
        starts = [i for i, position in enumerate(positions) if position == 0] + [len(positions)]
        for start, end in pairwise(starts):
            assert (batch.document_tokens_BS[row, start:end] == end - start).all()
    unit = noise / (8.0 / (batch.document_tokens_BS * D).sqrt())[..., None]
    assert unit.abs().max() <= 1.0
    assert abs(float(unit.mean())) < 0.01
    assert float(unit.var()) == pytest.approx(1 / 3, rel=0.02)  # of a uniform in [-1, 1]
    assert len(torch.unique(unit)) > 0.9 * unit.numel()


def test_noise_does_not_depend_on_the_layout() -> None:
    recipe = tiny_recipe(regulariser="neftune")
    (whole,) = batches_of_rank(0, 1)
    expected = noise_of(recipe, whole)
    shards = [noise_of(recipe, batches_of_rank(r, 2)[0]) for r in range(2)]
    assert expected is not None
    assert torch.equal(torch.cat([s for s in shards if s is not None], dim=1), expected)
    assert noise_of(tiny_recipe(), whole) is None


def test_weight_decay_as_the_regulariser_takes_the_place_of_the_optimizers() -> None:
    recipe = tiny_recipe(regulariser="weight_decay", baseline__weight_decay=3.0)
    assert model_regularisation(recipe).weight_decay == 3.0
    assert model_regularisation(tiny_recipe(baseline__weight_decay=3.0)).weight_decay is None


def test_a_usual_regulariser_is_added_to_token_dropout() -> None:
    with_decay = tiny_recipe(extra_regulariser="weight_decay", baseline__weight_decay=3.0)
    assert with_decay.regularisers == ("entrodrop", "weight_decay")
    assert model_regularisation(with_decay).weight_decay == 3.0
    (batch,) = batches_of_rank(0, 1)
    noisy = noise_of(tiny_recipe(extra_regulariser="neftune"), batch)
    alone = noise_of(tiny_recipe(regulariser="neftune"), batch)
    assert noisy is not None
    assert alone is not None
    assert torch.equal(noisy, alone)


def test_lengths_of_pieces() -> None:
    positions = torch.tensor([0, 1, 2, 0, 1, 0]).numpy()
    assert piece_lengths(positions).tolist() == [3, 3, 3, 2, 2, 1]


class Given:
    """Entropies, or losses, that a test chose."""

    def __init__(self, values_RP: torch.Tensor) -> None:
        self.values_RP = values_RP

    def of_step(self, batches: list[MicroBatch]) -> torch.Tensor:
        return self.values_RP


def test_rho1_trains_on_the_greatest_excess_alone() -> None:
    recipe = tiny_recipe(regulariser="rho1", baseline__rho1_share=0.25)
    (batch,) = batches_of_rank(0, 1)
    own = batch.is_target_token_BP
    generator = torch.Generator().manual_seed(0)
    nll, reference = (torch.rand(own.shape, generator=generator) * 5 for _ in range(2))
    reference[0, 3:6] = torch.inf  # tokens that the reference did not score
    source = ExcessLoss(
        Given(torch.where(own, nll, torch.inf)),  # type: ignore[arg-type]
        Given(torch.where(own, reference, torch.inf)),  # type: ignore[arg-type]
    )
    method = Rho1(
        recipe.dropout, source=source, share=0.25, seed=recipe.seed, vocab_size=VOCAB_SIZE
    )
    assert method.drops_losses
    dropout = method.begin_step(step_of([batch], num_targets=100))
    assert torch.equal(method.change_inputs(ModelInputs.of(batch), batch, 0).ids_BS, batch.ids_BS)
    known = own & reference.isfinite()
    excess = sorted((nll - reference)[known].tolist())
    num_dropped = math.ceil(0.75 * len(excess))
    (dropped,) = dropout.dropped_BP
    assert sorted((nll - reference)[dropped].tolist()) == excess[:num_dropped]
    assert not dropped[~known].any()
    # of the targets that have a reference value; the others stay
    assert dropout.rate_asked == pytest.approx(0.75 * len(excess) / 100)
    assert 100 * dropout.kept_share == pytest.approx(100 - 0.75 * len(excess))


def test_a_dropped_embedding_becomes_the_mean_of_the_vocabulary() -> None:
    config = AutoConfig.for_model("qwen3", vocab_size=50, hidden_size=16, num_hidden_layers=1)
    model = CausalLMWithEntropy(
        AutoModelForCausalLM.from_config(config), ModelRegularisation(replaces_by_mean=True)
    )
    seen: list[torch.Tensor] = []
    model.lm.base_model.forward = (  # type: ignore[method-assign]
        lambda inputs_embeds, **_: (
            seen.append(inputs_embeds) or SimpleNamespace(last_hidden_state=inputs_embeds)
        )
    )
    ids = torch.arange(6).reshape(1, 6)
    replaced = torch.tensor([[False, True, False, True, True, False]])
    documents: Any = None
    inputs = ModelInputs(ids, ids, ids, documents, replaced_BS=replaced)
    model(inputs)
    weight = model.lm.get_input_embeddings().weight
    expected = torch.where(replaced[..., None], weight.mean(0), weight[ids])
    assert torch.allclose(seen[0], expected, atol=1e-7)
    model.replaces_by_mean, model._mean_D = False, None
    model(inputs)
    assert torch.equal(seen[1], weight[ids] * ~replaced[..., None])


def test_the_divisor_counts_only_targets_that_the_corpus_has_a_value_for() -> None:
    """As in a cache's first epoch of a domain: its tokens cannot drop, so their terms all stay."""
    recipe = tiny_recipe(
        dropout__where="loss",
        dropout__quantile=0.5,
        dropout__max_rate=0.4,
        entropy={"source": "cache", "scope": "corpus"},
    )
    (batch,) = batches_of_rank(0, 1)
    own = batch.is_target_token_BP
    values = torch.where(own, torch.rand(own.shape), torch.inf)
    values[4:] = torch.inf  # samples that were not seen yet
    num_targets, num_known = int(own[:, 1:].sum()), int(own[:4, 1:].sum())
    low = SavedThreshold(nats=0.5, last_tie_key=0).low_set(seed=recipe.seed)
    corpus: Any = SimpleNamespace(low_set=lambda stream, step: low)
    source: Any = Given(values)
    method = EntroDrop(
        recipe.dropout, source=source, corpus=corpus, seed=recipe.seed, vocab_size=VOCAB_SIZE
    )
    dropout = method.begin_step(step_of([batch], trained_frac=1.0, num_targets=num_targets))
    assert dropout.rate_asked == pytest.approx(0.4 * 0.5 * num_known / num_targets)
    assert num_targets * dropout.kept_share == pytest.approx(num_targets - 0.4 * 0.5 * num_known)
