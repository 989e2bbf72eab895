"""Sizes of a model: from the recipe, a local configuration file, or a table of public models."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.hints import did_you_mean
from launch.planner.adapter import AdapterSizes, adapter_sizes
from launch.planner.corpus import read_vocab_size
from launch.planner.families import FAMILIES, Family, is_set, kept_by_mlp
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


@dataclass(frozen=True)
class Architecture:
    """A dense decoder: an embedding, layers that are all alike, a norm and an output layer."""

    family: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    """Numbers of one head."""
    vocab: int
    tied: bool
    """The head's weight is the embedding's."""
    positions: int
    """Learned ones."""
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    mlp_numbers: int
    """Kept by the MLP for each of its width."""
    source: str
    """Where these sizes come from."""
    adapter: AdapterSizes | None = None
    """Of each layer, whose own weights are then frozen."""

    @property
    def queries(self) -> int:
        """Numbers of a token's queries, all heads."""
        return self.heads * self.head

    @property
    def keys(self) -> int:
        """Numbers of a token's keys; its values have as many."""
        return self.kv_heads * self.head

    @property
    def kind(self) -> Family:
        """What its family has in common."""
        return FAMILIES[self.family]

    @property
    def norm(self) -> int:
        """Numbers in a norm of the hidden size."""
        return self.hidden * (2 if self.kind.layer_norm else 1)

    @property
    def layer_weights(self) -> tuple[int, ...]:
        """Numbers in each module of a layer, in the order in which the modules run."""
        norms = (self.norm,) * self.kind.norms
        before, last = (norms[:3], norms[3:]) if len(norms) > 2 else (norms, ())
        return (*before[:1], *self._attention_weights, *before[1:], *self.mlp_weights, *last)

    @property
    def _attention_weights(self) -> tuple[int, ...]:
        query_norm, key_norm = {
            "": ((), ()),
            "head": ((self.head,), (self.head,)),
            "all": ((self.queries,), (self.keys,)),
        }[self.kind.qk_norm]
        query, key = ((self.hidden + self.qkv_bias) * n for n in (self.queries, self.keys))
        out = (self.queries + self.out_bias) * self.hidden
        if self.kind.fused_qkv:
            return (query + 2 * key, *query_norm, *key_norm, out)
        return (query, *query_norm, key, *key_norm, key, out)

    @property
    def mlp_weights(self) -> tuple[int, ...]:
        """Up with what comes beside it, then down."""
        up = (self.hidden + self.mlp_bias) * self.intermediate
        down = (self.intermediate + self.mlp_bias) * self.hidden
        ups = (up,) * (2 if self.kind.gated else 1)
        return (sum(ups), down) if self.kind.fused_gate else (*ups, down)

    @property
    def linear_sizes(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's linear layers, in the order in which they run."""
        hidden, inner = self.hidden, self.intermediate
        return {
            "q_proj": (hidden, self.queries),
            "k_proj": (hidden, self.keys),
            "v_proj": (hidden, self.keys),
            "o_proj": (self.queries, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }

    @property
    def adapter_weights(self) -> tuple[int, ...]:
        """Numbers in each weight of a layer's adapter."""
        return self.adapter.weights if self.adapter else ()

    @property
    def trained(self) -> int:
        """Numbers that are not frozen."""
        return self.layers * sum(self.adapter_weights) if self.adapter else self.parameters

    @property
    def embedding_weight(self) -> int:
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All of the model itself, a tied weight once."""
        ends = self.embedding_weight * (1 if self.tied else 2) + self.positions * self.hidden
        norms = self.norm * (2 if self.kind.embedding_norm else 1)
        bias = self.vocab if self.kind.head_bias else 0
        return self.layers * sum(self.layer_weights) + ends + norms + bias


def find_architecture(recipe: Recipe) -> Architecture:
    """The sizes of the recipe's model, without loading or downloading anything.

    Raises:
        ValueError: for a model that is neither local nor known by name, or of another family.
    """
    arch = _of_model(recipe)
    if recipe.adapter is None:
        return arch
    if arch.kind.fused_qkv or arch.kind.fused_gate or not arch.kind.gated:
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
    hint = did_you_mean(name, PUBLIC_MODELS, cutoff=0.4)
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


def from_config(config: dict[str, Any], *, source: str) -> Architecture:
    """Sizes out of a config.json as Hugging Face writes it.

    Of a model of several kinds of input it is those of its text model.

    Raises:
        ValueError: for a family that is not known here, or a size that is not a number.
    """
    if isinstance(text := config.get("text_config"), dict):
        config = {key: config[key] for key in ("tie_word_embeddings",) if key in config} | text
    family = config.get("model_type")
    if family not in FAMILIES:
        # what a model's own file says is no slip of the pen, and another family no cure
        is_of_a_model = source.endswith("config.json")
        hint = "" if is_of_a_model else did_you_mean(str(family), FAMILIES)
        raise ValueError(
            f"{source}: model_type {family} is not supported by the planner{hint}; supported are "
            f"{', '.join(FAMILIES)}; docs/models.md lists what trains"
        )
    kind = FAMILIES[family]
    if config.get("word_embed_proj_dim", config.get("hidden_size")) != config.get("hidden_size"):
        raise ValueError(
            f"{source}: word_embed_proj_dim {config['word_embed_proj_dim']} is not supported by "
            "the planner; only that of the hidden size is"
        )

    def size(key: str, default: int | None = None) -> int:
        default = kind.usual.get(key, default)
        key = kind.names.get(key, key)
        value = config.get(key, default)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{source}: {key} must be an integer above 0 (is {value!r})")
        return value

    heads = size("num_attention_heads")
    hidden = size("hidden_size")
    positions = 0 if kind.positions is None else size(kind.positions) + kind.more_positions
    return Architecture(
        family=family,
        hidden=hidden,
        intermediate=size("intermediate_size", None if kind.gated else 4 * hidden),
        layers=size("num_hidden_layers"),
        heads=heads,
        kv_heads=size("num_key_value_heads", heads),
        head=size("head_dim", kind.head_dim or hidden // heads),
        vocab=size("vocab_size"),
        tied=bool(config.get("tie_word_embeddings", kind.tied)),
        positions=positions,
        qkv_bias=is_set(family, kind.qkv_bias, config),
        out_bias=is_set(family, kind.out_bias, config),
        mlp_bias=is_set(family, kind.mlp_bias, config),
        mlp_numbers=kept_by_mlp(kind, config),
        source=source,
    )
