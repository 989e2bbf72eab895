"""The same numbers on any layout: losses, gradients, dropped tokens."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from tests.distributed import run_ranks
from tests.training.layouts import (
    RandomScores,
    tiny_recipe,
)
from tests.training.measured_layouts import (
    DROPOUTS,
    LAYOUTS,
    MODELS,
    is_measured,
    make_engine,
    measured_on_all_layouts,
    step_without_update,
)
from training.model.inputs import ModelInputs
from training.ranks.dist import init_layout


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


@pytest.fixture(params=MODELS)
def measured(request: pytest.FixtureRequest) -> dict[str, list[dict[str, Any]]]:
    return measured_on_all_layouts(request.param)


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
