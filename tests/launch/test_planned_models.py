"""The sizes of models as transformers makes them, and their files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from launch.planner.models import PUBLIC_MODELS, find_architecture
from launch.planner.sizes import from_config
from tests.launch.shipped_recipes import QWEN_8B
from training.config.load import load_recipe

pytestmark = pytest.mark.usefixtures("in_repository")


@pytest.mark.parametrize("name", sorted(PUBLIC_MODELS))
def test_parameters_are_counted_as_transformers_makes_them(name: str) -> None:
    config = PUBLIC_MODELS[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    recipe = load_recipe(QWEN_8B, [f"model.pretrained={name}"])
    arch = find_architecture(recipe)
    assert arch.parameters == sum(parameter.numel() for parameter in model.parameters())
    layer = model.model.layers[0]
    assert sum(arch.weights_of(arch.stack[0])) == sum(
        parameter.numel() for parameter in layer.parameters()
    )


def test_published_sizes_are_met() -> None:
    found = {
        name: from_config(config, source="table").parameters
        for name, config in PUBLIC_MODELS.items()
    }
    assert found == {  # as the safetensors files on the hub say
        "Qwen/Qwen3-0.6B": 596_049_920,
        "Qwen/Qwen3-1.7B": 1_720_574_976,
        "Qwen/Qwen3-8B": 8_190_735_360,
        "meta-llama/Llama-3.1-8B": 8_030_261_248,
    }


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff"])
def test_a_models_file_that_is_damaged_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path}: "):
        find_architecture(load_recipe(QWEN_8B, [f"model.pretrained={tmp_path}"]))


def test_a_run_in_the_place_of_a_model_is_told_by_its_export(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.resolved.yaml").touch()
    recipe = load_recipe(QWEN_8B, [f"model.pretrained={run}"])
    said = f"model.pretrained: {run} is a run, not a model: "
    with pytest.raises(ValueError, match=f"{said}`.* export {run}` makes one"):
        find_architecture(recipe)
    (run / "export").mkdir()
    (run / "export" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=f"{said}use {run}/export"):
        find_architecture(recipe)
