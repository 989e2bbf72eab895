"""A folder's weights are those of the model, or nothing is trained on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from tests.distributed import run_ranks
from tests.training.layouts import tiny_recipe
from tests.training.refusals import check, refused
from training.config.sections import Model
from training.model.causal_lm import resolve_model_config
from training.model.engine import build_engine
from training.model.inputs import NO_REGULARISATION
from training.model.weights import find_other_weights
from training.ranks.dist import init_layout

Weights = dict[str, Tensor]


def write_folder(folder: Path, edit: Callable[[Weights], Weights], *, tied: bool = False) -> Path:
    """A qwen3 of two layers, its weights changed."""
    config = AutoConfig.for_model(
        "qwen3",
        vocab_size=512,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=tied,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    path = folder / "model.safetensors"
    save_file(edit(load_file(path)), path, metadata={"format": "pt"})
    return folder


def without(part: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: each for name, each in weights.items() if part not in name}


def unchanged(weights: Weights) -> Weights:
    return weights


def prefixed(weights: Weights) -> Weights:
    return {f"transformer.{name}": each for name, each in weights.items()}


def with_a_third_layer(weights: Weights) -> Weights:
    return weights | {"model.layers.2.mlp.up_proj.weight": torch.zeros(24, 16)}


def with_a_shorter_head(weights: Weights) -> Weights:
    return weights | {"lm_head.weight": torch.zeros(500, 16)}


def with_another_head(weights: Weights) -> Weights:
    return weights | {"lm_head.weight": torch.zeros(512, 16)}


def with_the_head_again(weights: Weights) -> Weights:
    return weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}


def with_another_head_by_older_names(weights: Weights) -> Weights:
    return {name.removeprefix("model."): each for name, each in with_another_head(weights).items()}


def found_in(folder: Path) -> str | None:
    model = Model(pretrained=str(folder))
    config = resolve_model_config(model, vocab_size=512, dtype=torch.float32)
    return find_other_weights(model, config)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_as_they_were_saved_are_those_of_the_model(tmp_path, tied):
    assert found_in(write_folder(tmp_path, unchanged, tied=tied)) is None


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (without("lm_head"), ["1 missing: lm_head.weight"]),
        (without("layers.1.mlp"), ["3 missing: model.layers.1.mlp.down_proj.weight, "]),
        (prefixed, ["25 missing: lm_head.weight", "25 that this model has no place for: transf"]),
        (with_a_third_layer, ["no place for: model.layers.2.mlp.up_proj.weight"]),
        (with_a_shorter_head, ["lm_head.weight has [500, 16] instead of [512, 16]"]),
    ],
)
def test_other_weights_are_named(tmp_path, edit, words):
    message = found_in(write_folder(tmp_path, edit))
    assert message is not None
    assert all(word in message for word in words), message
    assert message.endswith("is the folder another model's, or incomplete?")


@pytest.mark.parametrize("edit", [with_another_head, with_another_head_by_older_names])
def test_tied_weights_that_the_files_have_twice_must_be_the_same(tmp_path, capfd, edit):
    """transformers alone would then train both, and ZeRO-3 only the one."""
    message = found_in(write_folder(tmp_path / "other", edit, tied=True))
    assert message is not None and "\n" not in message
    assert "ties lm_head.weight to model.embed_tokens.weight, but its files have both" in message
    folder = write_folder(tmp_path / "same", with_the_head_again, tied=True)
    capfd.readouterr()
    assert found_in(folder) is None
    assert capfd.readouterr() == ("", "")
    assert found_in(write_folder(tmp_path / "untied", with_another_head)) is None


def test_weights_of_the_hub_that_are_not_here_yet_are_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    config = resolve_model_config(
        Model(pretrained=str(write_folder(tmp_path / "other", unchanged))),
        vocab_size=512,
        dtype=torch.float32,
    )
    assert find_other_weights(Model(pretrained="nobody/has-this"), config) is None


def test_a_start_from_other_weights_is_refused(tmp_path, small_corpus):
    folder = write_folder(tmp_path, without("layers.0"))
    message = refused(lambda: check(small_corpus, model={"pretrained": str(folder)}))
    assert "11 missing: model.layers.0." in message


def test_a_cut_off_file_is_one_sentence(tmp_path):
    path = write_folder(tmp_path, unchanged) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    message = found_in(tmp_path)
    assert message is not None
    assert message.startswith(f"model.pretrained {tmp_path}: ")
    assert "\n" not in message


def load(folder: str) -> str:
    recipe = tiny_recipe(model={"pretrained": folder})
    config = resolve_model_config(recipe.model, vocab_size=512, dtype=torch.float32)
    layout = init_layout(sp_size=1)
    with pytest.raises(ValueError, match="NaN") as caught:
        build_engine(
            recipe, config, layout=layout, num_micro_steps=1, regularisation=NO_REGULARISATION
        )
    return str(caught.value)


def test_a_model_from_a_folder_begins_in_training_mode(tmp_path):
    """transformers loads it for evaluation: without dropout, and nothing is recomputed."""
    folder = write_folder(tmp_path, unchanged)
    assert run_ranks(is_in_training, str(folder), world_size=1) == [True]


def is_in_training(folder: str) -> bool:
    recipe = tiny_recipe(model={"pretrained": folder})
    config = resolve_model_config(recipe.model, vocab_size=512, dtype=torch.float32)
    engine = build_engine(
        recipe,
        config,
        layout=init_layout(sp_size=1),
        num_micro_steps=1,
        regularisation=NO_REGULARISATION,
    )
    return all(module.training for module in engine.model.modules())


def with_nan(weights: Weights) -> Weights:
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    return weights


def test_nan_in_one_ranks_part_is_refused_on_all(tmp_path):
    folder = write_folder(tmp_path, with_nan)
    expected = "NaN or infinity in 1 weights: model.layers.1.mlp.up_proj.weight"
    assert run_ranks(load, str(folder), world_size=2) == [f"model.pretrained: {expected}"] * 2


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("output_router_logits", True, "a router loss, which is not supported"),
        ("quantization_config", {"quant_method": "gptq", "bits": 4}, "quantized (gptq)"),
    ],
)
def test_what_the_engine_would_leave_out_is_refused(tmp_path, key, value, words):
    folder = write_folder(tmp_path, unchanged)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert words in refused(lambda: found_in(folder))
