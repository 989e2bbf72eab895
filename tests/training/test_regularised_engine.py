"""Model and optimizer are built with what the recipe's regularisers add to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.distributed import run_ranks
from tests.training.layouts import VOCAB_SIZE, tiny_recipe
from tests.training.short_runs import short_recipe
from training.config.recipe import Recipe
from training.entrodrop.counter_rng import HIDDEN_STREAM
from training.model.causal_lm import CausalLMWithEntropy, resolve_model_config
from training.model.engine import build_engine
from training.model.inputs import ModelRegularisation
from training.ranks.dist import init_layout
from training.regularisers.table import model_regularisation


def built_with(recipe: Recipe) -> tuple[Any, ...]:
    """What model and optimizer of an engine have of a recipe's regularisers."""
    config = resolve_model_config(recipe.model, vocab_size=VOCAB_SIZE, dtype=torch.float32)
    engine = build_engine(
        recipe,
        config,
        layout=init_layout(sp_size=1),
        num_micro_steps=1,
        regularisation=model_regularisation(recipe),
    )
    model = engine.model
    decays = [group["weight_decay"] for group in engine.ds.optimizer.param_groups]
    smoothing = model.lm.get_output_embeddings().label_smoothing
    return smoothing, model.layer_dropout.rates.hidden_dropout, model.replaces_by_mean, decays


def test_model_and_optimizer_are_built_with_the_regularisers_of_the_recipe() -> None:
    recipe = tiny_recipe(
        regulariser="hidden_dropout",
        extra_regulariser="weight_decay",
        baseline={"hidden_dropout": 0.25, "weight_decay": 3.0},
    )
    assert run_ranks(built_with, recipe, world_size=1) == [(0.0, 0.25, False, [3.0, 0.0])]
    recipe = tiny_recipe(
        dropout__replace="mean",
        extra_regulariser="label_smoothing",
        baseline={"label_smoothing": 0.2},
    )
    assert run_ranks(built_with, recipe, world_size=1) == [(0.2, 0.0, True, [0.1, 0.0])]


def test_a_run_builds_its_engine_with_them(tmp_path: Path, small_corpus: Path) -> None:
    recipe = short_recipe(
        small_corpus,
        tmp_path / "run",
        regulariser="label_smoothing",
        train__sequence_parallel_size=1,
    )
    (found,) = run_ranks(regularisation_of_run, recipe, world_size=1)
    assert found == ModelRegularisation(label_smoothing=recipe.baseline.label_smoothing)


def regularisation_of_run(recipe: Recipe) -> ModelRegularisation | None:
    from training.run import run as run_module

    given: list[ModelRegularisation | None] = []

    def build_engine(*args: Any, regularisation: ModelRegularisation | None, **_: Any) -> None:
        given.append(regularisation)
        raise ValueError("enough was seen")

    run_module.build_engine = build_engine  # type: ignore[assignment]
    with pytest.raises(ValueError, match="enough was seen"):
        run_module.train(recipe)
    return given[0]


def test_hidden_dropout_acts_behind_every_layer_in_training_alone() -> None:
    config = AutoConfig.for_model("qwen3", vocab_size=50, hidden_size=64, num_hidden_layers=3)
    lm = AutoModelForCausalLM.from_config(config)
    seen: list[torch.Tensor] = []
    for layer in lm.base_model.layers:  # before the hooks of ours: what the layer itself gives
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model = CausalLMWithEntropy(lm, ModelRegularisation(hidden_dropout=0.25), seed=5)
    after: list[torch.Tensor] = []
    for layer in lm.base_model.layers:
        layer.register_forward_hook(lambda module, inputs, output: after.append(output))
    index = torch.arange(40).reshape(2, 20) + 1000
    embeds = torch.randn(2, 20, 64)
    model.layer_dropout.begin(index)
    model.train()
    lm.base_model(inputs_embeds=embeds)
    is_kept = [found != 0 for found in after]
    for number, (given, found) in enumerate(zip(seen, after, strict=True)):
        assert torch.allclose(found, given * is_kept[number] / 0.75)
        assert float(is_kept[number].double().mean()) == pytest.approx(0.75, abs=0.03)
    assert (is_kept[0] != is_kept[1]).double().mean() > 0.2  # a draw of its own for each layer
    half = model.layer_dropout
    half.begin(index[:, 10:])  # the second of two sequence shards
    shard = half.apply(seen[0][:, 10:], rate=0.25, stream=HIDDEN_STREAM, layer=0)
    assert torch.equal(shard, after[0][:, 10:])
    seen.clear()
    after.clear()
    model.eval()
    lm.base_model(inputs_embeds=embeds)
    for given, found in zip(seen, after, strict=True):
        assert torch.equal(given, found)
