"""Operations of a step: those of the planner, with and without what is computed twice."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from launch.planner.duration import forecast_duration
from launch.planner.models import find_architecture
from tests.training.layouts import tiny_recipe
from training.config.passes import Passes
from training.model.causal_lm import CausalLMWithEntropy
from training.model.utilisation import Utilisation, flops_of, peak_tflops


@pytest.mark.parametrize(("is_tied", "tiles"), [(True, False), (False, False), (True, True)])
def test_a_token_takes_what_the_planner_says(is_tied, tiles):
    recipe = tiny_recipe(
        model__config__tie_word_embeddings=is_tied,
        model__activation_checkpointing=not is_tied,
        model__tiled_mlp=tiles,
    )
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(**recipe.model.config))
    found = Utilisation.of(recipe, CausalLMWithEntropy(lm), num_gpus=1)
    duration = forecast_duration(
        recipe,
        find_architecture(recipe),
        micro_steps=1,
        corpus_tokens=None,
        flops_per_second=1.0,
    )
    assert found.forward_flops is not None
    assert found.forward_flops * found.passes.hardware == duration.flops_per_token
    assert found.passes == duration.passes
    assert (found.passes.hardware % 1 > 0) == tiles, "a part of a pass is computed again"


def test_a_model_with_experts_has_no_figure():
    """Of its weights each token meets some only."""
    config = AutoConfig.for_model(
        "qwen3_moe", hidden_size=16, intermediate_size=16, moe_intermediate_size=8, num_experts=4,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, vocab_size=64,
    )  # fmt: skip
    assert flops_of(AutoModelForCausalLM.from_config(config), sequence_tokens=8) is None


def test_recomputed_passes_count_for_the_hardware_alone():
    run = Utilisation(1e9, Passes(3.0, 4.0), num_gpus=2, peak_tflops=100.0)
    assert run.at(20_000.0) == pytest.approx(
        {"model_tflops": 30.0, "hardware_tflops": 40.0, "mfu": 0.3, "hfu": 0.4}
    )
    unknown = Utilisation(1e9, Passes(3.0, 4.0), num_gpus=2, peak_tflops=None)
    assert unknown.at(20_000.0).keys() == {"model_tflops", "hardware_tflops"}
    assert Utilisation(None, Passes(3.0, 4.0), num_gpus=2, peak_tflops=100.0).at(1.0) == {}


@pytest.mark.parametrize(
    ("gpu", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA H20", 148.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA GeForce RTX 4090", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
    ],
)
def test_peaks_are_those_of_data_sheets(gpu, peak):
    assert peak_tflops(gpu) == peak
