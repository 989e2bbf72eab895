"""The same numbers on any layout: losses, gradients, dropped tokens."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.distributed import ranks_folder, run_ranks
from tests.grids import is_taken
from tests.training.layouts import (
    RandomScores,
    UnevenPack,
    make_regulariser,
    tiny_recipe,
    whole_epochs,
)
from training.config.layout import batch_shape
from training.config.recipe import Recipe
from training.data.stream import MicroBatch, SampleStream
from training.model.causal_lm import resolve_model_config
from training.model.engine import Engine, build_engine
from training.model.inputs import ModelInputs
from training.ranks.dist import init_layout
from training.regularisers.entropy_cache import EntropyCache
from training.regularisers.table import model_regularisation
from training.run.forward import Forward
from training.run.step import train_step

# name: processes, sequence shards, rows of a forward pass
LAYOUTS = {
    "one_process": (1, 1, 8),
    "accumulation_2": (1, 1, 4),
    "dp_2": (2, 1, 4),
    "dp_2_accumulation_2": (2, 1, 2),
    "sp_2": (2, 2, 8),
    "sp_2_accumulation_2": (2, 2, 4),
    "dp_2_sp_2": (4, 2, 4),
    "dp_2_sp_2_accumulation_2": (4, 2, 2),
}
DROPOUTS: dict[str, dict[str, Any]] = {
    "off": {"regulariser": "none"},
    "input": {"dropout__where": "input"},
    "loss": {"dropout__where": "loss"},
    "both_by_nll_random_token": {
        "dropout__where": "both",
        "dropout__replace": "random_token",
        "entropy__measure": "nll",
    },
    "random_loss": {"regulariser": "random_token_dropout", "dropout__where": "loss"},
    "neftune": {"regulariser": "neftune"},
    "hidden_dropout": {"regulariser": "hidden_dropout"},
    "label_smoothing": {"regulariser": "label_smoothing", "train__z_loss": 1e-2},
    "both_by_reference_mean": {
        "dropout__where": "both",
        "dropout__replace": "mean",
        "entropy__source": "reference",
    },
    "rho1": {"regulariser": "rho1"},
    "input_by_reference_of_the_corpus": {
        "entropy__source": "reference",
        "entropy__scope": "corpus",
    },
    "input_by_reference": {"entropy__source": "reference"},
    "both_by_cache": {"dropout__where": "both", "entropy__source": "cache"},
    "loss_by_cache_of_the_corpus_nll": {
        "dropout__where": "loss",
        "entropy__source": "cache",
        "entropy__scope": "corpus",
        "entropy__measure": "nll",
        "entropy__cache_keeps": "latest",
    },
    "both_beside_hidden_dropout": {"dropout__where": "both", "extra_regulariser": "hidden_dropout"},
    "loss_lagged": {"dropout__where": "loss", "entropy__threshold": "lagged"},
    "loss_guided": {"dropout__where": "loss", "dropout__guidance": 0.5},
    "loss_guided_lagged": {
        "dropout__where": "loss",
        "dropout__guidance": 0.5,
        "entropy__threshold": "lagged",
    },
}


# compared with the other within one layout and model, so both are measured there
MEASURED_WITH = {
    "loss_lagged": "loss",
    "loss_guided_lagged": "loss_guided",
    "input_by_reference_of_the_corpus": "input_by_reference",
}
MODELS = {
    "tied": {},
    "untied_one_kv_head_checkpointed": {
        "model__config__tie_word_embeddings": False,
        "model__config__num_key_value_heads": 1,
        "model__activation_checkpointing": True,
    },
}


def is_measured(model: str, layout: str, dropout: str) -> bool:
    """All of it on one process, and of the rest what `tests.grids` takes."""
    dropout = MEASURED_WITH.get(dropout, dropout)
    axes = ((MODELS, model), (LAYOUTS, layout), (DROPOUTS, dropout))
    return layout == "one_process" or is_taken(*(list(axis).index(value) for axis, value in axes))


def cells(*dropouts: str, one_process: bool = False) -> Any:
    """What is measured of these dropouts, as parameters of a test."""
    return pytest.mark.parametrize(
        ("measured", "layout", "dropout"),
        [
            (model, layout, dropout)
            for model in MODELS
            for layout in LAYOUTS
            for dropout in dropouts
            if is_measured(model, layout, dropout) and (one_process or layout != "one_process")
        ],
        indirect=["measured"],
    )


def test_every_two_of_model_layout_and_dropout_meet():
    cases = [case for case in itertools.product(MODELS, LAYOUTS, DROPOUTS) if is_measured(*case)]
    for first, second in itertools.combinations((0, 1, 2), 2):
        axes = [(MODELS, LAYOUTS, DROPOUTS)[axis] for axis in (first, second)]
        assert {(case[first], case[second]) for case in cases} == set(itertools.product(*axes))


def measure(
    sp_size: int, micro_batch_samples: int, model: dict[str, Any], dropouts: list[str]
) -> dict[str, Any]:
    """On one rank: dropped tokens, loss and full gradients of a step, for every dropout."""
    layout = init_layout(sp_size=sp_size)
    base = {"train__micro_batch_samples": micro_batch_samples, **model}
    base["train__sequence_parallel_size"] = sp_size
    recipe = tiny_recipe(**base)
    engine, stream = make_engine(recipe, layout)
    results = {}
    for name in dropouts:
        changed = tiny_recipe(**base, **DROPOUTS[name])
        in_model = model_regularisation(changed)
        head = engine.model.lm.get_output_embeddings()
        engine.model.replaces_by_mean = in_model.replaces_by_mean
        engine.model._mean_D = None
        engine.model.hidden_dropout.rate = in_model.hidden_dropout
        head.label_smoothing = in_model.label_smoothing
        head.z_loss = changed.train.z_loss
        results[name] = step_without_update(changed, engine, stream)
    return results


def make_engine(recipe: Recipe, layout: Any) -> tuple[Any, SampleStream]:
    pack = UnevenPack()
    samples_per_step, micro_steps = batch_shape(
        global_batch_tokens=recipe.train.global_batch_tokens,
        sequence_tokens=recipe.data.sequence_tokens,
        micro_batch_samples=recipe.train.micro_batch_samples,
        dp_size=layout.dp_size,
    )
    config = resolve_model_config(recipe.model, vocab_size=101, dtype=torch.float32)
    engine = build_engine(
        recipe,
        config,
        layout=layout,
        num_micro_steps=micro_steps,
        regularisation=model_regularisation(recipe),
    )
    stream = SampleStream(
        pack=pack,
        split="train",
        layout=layout,
        total_samples=3 * pack.num_samples(),
        samples_per_step=samples_per_step,
        micro_batch_samples=recipe.train.micro_batch_samples,
        order=whole_epochs(pack.num_samples(), seed=recipe.seed),
    )
    return CapturingEngine(**vars(engine)), stream


class CapturingEngine(Engine):
    """Keeps the full gradients of a step and leaves the weights as they are (lr 0)."""

    def backward_and_step(self, loss_sum: torch.Tensor, *, divisor: float, lr: float) -> Any:
        from deepspeed.utils import safe_get_full_grad

        factor = self.layout.world_size * self.num_micro_steps / divisor
        for group in self.ds.optimizer.param_groups:
            group["lr"] = group["weight_decay"] = 0.0
        ends_step = self.ds.is_gradient_accumulation_boundary()
        self.ds.backward(loss_sum * factor)
        if ends_step:
            gradients = {
                name: safe_get_full_grad(parameter).clone()
                for name, parameter in self.ds.module.named_parameters()
            }
            object.__setattr__(self, "captured", gradients)
        self.ds.step()
        return float(self.ds.get_global_grad_norm()) if ends_step else None


class DroppedTokens:
    """Which tokens a step drops, by what its forward passes are given."""

    def __init__(self) -> None:
        self.found: set[int] = set()

    def add(self, batch: MicroBatch, forward: Forward, *, micro_step: int) -> None:
        if forward.drops_BS is not None:
            self.found |= set(batch.token_index_BP[:, 1:][forward.drops_BS].tolist())


def step_without_update(recipe: Recipe, engine: Any, stream: SampleStream) -> dict[str, Any]:
    """What the step drops, its row, tokens and gradients, and what a cache holds behind it."""
    cache = empty_cache(recipe, stream) if recipe.keeps_entropies else None
    regulariser = make_regulariser(recipe, engine, stream.pack, cache=cache)
    step: dict[str, Any] = {"step": 0, "trained_frac": 0.5, "lr": recipe.optimizer.lr}
    if recipe.is_lagged or cache:  # as if the step before had been this very one
        train_step(engine, stream, regulariser, **step)
    if cache:  # a threshold of the corpus is that of the epoch's start
        regulariser = make_regulariser(recipe, engine, stream.pack, cache=cache)
    dropped: Any = DroppedTokens()
    done = train_step(engine, stream, regulariser, sketch=dropped, **step)
    result = {"dropped": dropped.found, "row": done.row, "num_tokens": done.num_tokens}
    if cache:
        dist.barrier()  # as the first collective of a next step does
        samples = range(stream.pack.num_samples())
        result["cache"] = cache.read(samples, first=0, count=stream.pack.seq_len)
    return result | {"gradients": engine.captured}


def empty_cache(recipe: Recipe, stream: SampleStream) -> EntropyCache:
    """In a file that the ranks share."""
    cache = EntropyCache(
        ranks_folder() / f"cache-{recipe.entropy.measure}",
        num_samples=stream.pack.num_samples(),
        sample_tokens=stream.pack.seq_len,
    )
    if dist.get_rank() == 0:
        cache.clear()
    dist.barrier()
    return cache


@pytest.fixture(params=MODELS)
def measured(request: pytest.FixtureRequest) -> dict[str, list[dict[str, Any]]]:
    return measured_on_all_layouts(request.param)


@functools.cache
def measured_on_all_layouts(model: str) -> dict[str, list[dict[str, Any]]]:
    """What `measure` returns on each rank, by layout."""
    results = {}
    for layout, (world_size, sp_size, rows) in LAYOUTS.items():
        dropouts = [name for name in DROPOUTS if is_measured(model, layout, name)]
        arguments = (measure, sp_size, rows, MODELS[model], dropouts)
        results[layout] = run_ranks(*arguments, world_size=world_size)
    return results


@cells(*DROPOUTS)
def test_loss_and_gradients_agree_with_one_process(measured, layout, dropout):
    reference = measured["one_process"][0][dropout]
    for rank in measured[layout]:
        assert rank[dropout]["num_tokens"] == reference["num_tokens"]
        for key in ("loss", "objective", "grad_norm", "mean_entropy_nats", "drop_rate_realised"):
            assert rank[dropout]["row"][key] == pytest.approx(reference["row"][key], rel=1e-5), key
        for name, expected in reference["gradients"].items():
            found = rank[dropout]["gradients"][name]
            difference = (found - expected).norm() / expected.norm()
            assert difference < 1e-5, f"{name}: relative difference {difference:.1e}"


@cells(*sorted(DROPOUTS.keys() - {"off", "neftune", "label_smoothing", "hidden_dropout"}))
def test_the_same_tokens_drop_bit_for_bit(measured, layout, dropout):
    expected = measured["one_process"][0][dropout]["dropped"]
    assert len(expected) > 20
    found = set().union(*(rank[dropout]["dropped"] for rank in measured[layout]))
    assert found == expected


@cells("loss", "loss_guided", one_process=True)
def test_a_lagged_threshold_of_the_same_step_drops_what_the_probe_would(measured, layout, dropout):
    """Weights stay, so the step before has this step's entropies: only the way there differs."""
    for rank in measured[layout]:
        probed, lagged = rank[dropout], rank[f"{dropout}_lagged"]
        for key in ("loss", "objective", "grad_norm", "drop_rate_realised", "drop_rate_asked"):
            assert lagged["row"][key] == pytest.approx(probed["row"][key], rel=1e-6), key
        assert lagged["row"]["drop_rate_realised"] > 0.2
        for name, expected in probed["gradients"].items():
            found = lagged["gradients"][name]
            assert (found - expected).norm() <= 1e-5 * expected.norm(), name


@cells("input_by_reference", one_process=True)
def test_a_quantile_of_the_corpus_is_that_of_a_batch_which_is_the_corpus(measured, layout, dropout):
    """Found by ranks that read samples, not shards of a batch: only the way there differs."""
    for rank in measured[layout]:
        batch, corpus = rank[dropout], rank[f"{dropout}_of_the_corpus"]
        assert corpus["dropped"] == batch["dropped"]
        threshold = corpus["row"]["entropy_threshold_nats"]
        assert threshold == batch["row"]["entropy_threshold_nats"]


@cells("both_by_cache", "loss_by_cache_of_the_corpus_nll")
def test_the_cache_holds_the_same_on_any_layout(measured, layout, dropout):
    """To a last bit of float16, and with the same marks for values behind dropped inputs."""
    expected = measured["one_process"][0][dropout]["cache"]
    for rank in measured[layout]:
        found = rank[dropout]["cache"]
        assert np.array_equal(np.isnan(found), np.isnan(expected))
        assert np.array_equal(np.signbit(found), np.signbit(expected))
        assert np.allclose(found, expected, rtol=1e-3, atol=1e-4, equal_nan=True)


def test_a_cache_drops_what_a_probe_would(measured):
    """Weights stay, so what the step before measured is what a probe measures, in float16."""
    dropped = measured["one_process"][0]["both_by_cache"]["dropped"]
    probed = measured["one_process"][0]["input"]["dropped"]
    assert len(dropped ^ probed) <= 2  # rounding may swap neighbours at the threshold
    assert len(dropped) > 20


def drops_and_entropies() -> tuple[set[int], dict[int, float]]:
    """At rate 1: the tokens that drop, and the entropy of each token by a plain loop."""
    layout = init_layout(sp_size=1)
    recipe = tiny_recipe(train__micro_batch_samples=4, dropout__max_rate=1.0, dropout__quantile=0.3)
    engine, stream = make_engine(recipe, layout)
    entropy_of_token = {}
    for batch in stream.step(0):
        _, entropy_BS = engine.probe(ModelInputs.of(batch))
        for row, sample in enumerate(batch.sample_ids):
            ids = stream.pack.sample(sample)
            for position in range(1, ids.num_tokens):
                # The first of a document is never predicted, a masked one never learnt.
                if ids.position_ids[position] > 0 and ids.in_loss[position]:
                    token = sample * stream.pack.seq_len + position
                    entropy_of_token[token] = float(entropy_BS[row, position - 1])
    return step_without_update(recipe, engine, stream)["dropped"], entropy_of_token


def test_the_tokens_that_drop_are_those_whose_own_prediction_was_surest():
    """An entropy that were moved to a neighbour would drop other tokens."""
    ((dropped, entropy_of_token),) = run_ranks(drops_and_entropies, world_size=1)
    count = math.ceil(0.3 * len(entropy_of_token))
    surest = sorted(entropy_of_token, key=entropy_of_token.__getitem__)[:count]
    assert dropped == set(surest)


def dropped_by_reference() -> tuple[set[int], list[tuple[float, int]]]:
    """At rate 1: the tokens that drop, and (score, number) of each that could."""
    layout = init_layout(sp_size=1)
    recipe = tiny_recipe(
        train__micro_batch_samples=4,
        dropout__max_rate=1.0,
        dropout__quantile=0.3,
        entropy__source="reference",
    )
    engine, stream = make_engine(recipe, layout)
    scored = []
    for batch in stream.step(0):
        for sample in batch.sample_ids:
            ids, scores = stream.pack.sample(sample), RandomScores().sample(stream.pack, sample)
            is_target = (ids.position_ids > 0) & ids.in_loss & ~np.isnan(scores)
            is_target[ids.num_tokens :] = False
            for position in np.flatnonzero(is_target).tolist():
                token = sample * stream.pack.seq_len + position
                scored.append((float(scores[position]), token))
    return step_without_update(recipe, engine, stream)["dropped"], scored


def test_reference_scores_drop_the_lowest_of_the_tokens_that_have_one():
    ((dropped, scored),) = run_ranks(dropped_by_reference, world_size=1)
    assert len(dropped) == math.ceil(0.3 * len(scored))
    score_of = {token: score for score, token in scored}
    highest = max(score_of[token] for token in dropped)
    # All below the threshold, none above it; ties at it (scores have one decimal) by a hash.
    assert {token for score, token in scored if score < highest} <= dropped
    assert dropped <= {token for score, token in scored if score <= highest}


def test_dropout_changes_what_it_should(measured):
    off, inputs, loss = (measured["one_process"][0][name] for name in ("off", "input", "loss"))
    assert inputs["row"]["loss"] != off["row"]["loss"]
    assert inputs["row"]["objective"] == pytest.approx(inputs["row"]["loss"])
    assert loss["row"]["loss"] > off["row"]["loss"]  # the easy tokens have left it
    assert loss["row"]["drop_rate_realised"] > 0.1
