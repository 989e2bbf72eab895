"""The sizes of a recipe's model: from the recipe, a local configuration file, or a table."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.commands import command
from common.hints import did_you_mean
from launch.planner.adapter import adapter_sizes
from launch.planner.architecture import Architecture
from launch.planner.corpus import read_vocab_size
from launch.planner.sizes import from_config
from training.config.load import KEPT_RECIPE
from training.config.recipe import Recipe

PUBLIC_MODELS: dict[str, dict[str, Any]] = {
    "Qwen/Qwen3-0.6B": {
        "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 151_936, "tie_word_embeddings": True,
    },
    "Qwen/Qwen3-1.7B": {
        "model_type": "qwen3", "hidden_size": 2048, "intermediate_size": 6144,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 151_936, "tie_word_embeddings": True,
    },
    "Qwen/Qwen3-8B": {
        "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12_288,
        "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 151_936, "tie_word_embeddings": False,
    },
    "meta-llama/Llama-3.1-8B": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14_336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 128_256, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""From the config.json of each published model."""


def find_architecture(recipe: Recipe) -> Architecture:
    """The sizes of the recipe's model, without loading or downloading anything.

    Raises:
        ValueError: for a model that is neither local nor known by name, or of another family.
    """
    arch = _of_model(recipe)
    if recipe.adapter is None:
        return arch
    if not arch.is_plain or arch.kind.fused_qkv or arch.kind.fused_gate or not arch.kind.gated:
        raise ValueError(
            f"adapter: no forecast for the layers of {arch.family}, whose linear layers are not "
            "those of llama"
        )
    return replace(arch, adapter=adapter_sizes(recipe.adapter, arch.linear_sizes))


def _of_model(recipe: Recipe) -> Architecture:
    model = recipe.model
    if model.config is not None:
        config = dict(model.config)
        if "vocab_size" not in config:
            config["vocab_size"] = _vocab_of_corpus(recipe)
        return from_config(config, source="model.config")
    name = str(model.pretrained)
    if path := _local_config(name):
        return from_config(_read_config(path), source=str(path))
    if name in PUBLIC_MODELS:
        return from_config(PUBLIC_MODELS[name], source="the planner's own table")
    if (Path(name) / KEPT_RECIPE).is_file():
        export = Path(name) / "export"
        is_there = (export / "config.json").is_file()
        remedy = (
            f"use {export}" if is_there else f"`{command(f'training export {name}')}` makes one"
        )
        raise ValueError(f"model.pretrained: {name} is a run, not a model: {remedy}")
    # another size is another model, not a slip of the pen
    numbers = re.findall(r"\d+", name)
    near = [known for known in PUBLIC_MODELS if re.findall(r"\d+", known) == numbers]
    could_be_of_hub = re.fullmatch(r"\w[\w.-]*/[\w.-]+", name)
    download = f"`hf download {name} config.json` brings its sizes without its weights"
    hint = did_you_mean(name, near, cutoff=0.4, otherwise=download if could_be_of_hub else "")
    raise ValueError(
        f"model.pretrained {name} is not a folder here, not in the hub's cache, and not one of "
        f"{', '.join(PUBLIC_MODELS)}{hint}"
    )


def _local_config(name: str) -> Path | None:
    """config.json in a folder of that name, or in the newest snapshot of the hub's cache."""
    if (own := Path(name) / "config.json").is_file():
        return own
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    found = hub.glob(f"models--{name.replace('/', '--')}/snapshots/*/config.json")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValueError as error:  # bad JSON, bad UTF-8
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected an object, found {type(config).__name__}")
    return config


def _vocab_of_corpus(recipe: Recipe) -> int:
    found = read_vocab_size(recipe)
    if found is None:
        raise ValueError(
            f"model.config has no vocab_size and data.corpus {recipe.data.corpus} has no manifest "
            "to read it from: prepare the corpus first, or add model.config.vocab_size=NUMBER"
        )
    return found
