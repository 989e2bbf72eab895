"""Reads a model's sizes out of its configuration, as Hugging Face writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.hints import did_you_mean
from launch.planner.architecture import Architecture
from launch.planner.families import FAMILIES, is_set, kept_by_mlp
from launch.planner.settings import Settings
from launch.planner.stack import beside_width, stack_of


def from_config(config: dict[str, Any], *, source: str) -> Architecture:
    """Sizes out of a config.json as Hugging Face writes it.

    Of a model of several kinds of input it is those of its text model.

    Raises:
        ValueError: for a family that is not known here, a size that is not a number, or quantized
            weights, which training refuses.
    """
    _refuse_quantized(config, source)
    if isinstance(text := config.get("text_config"), dict):
        _refuse_quantized(text, source)
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
    return _architecture(Settings(family, config, source))


def _refuse_quantized(config: Mapping[str, Any], source: str) -> None:
    """As training does: there are no numbers to train."""
    if quantized := config.get("quantization_config"):
        kind = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise ValueError(
            f"{source}: its weights are quantized ({kind}); training needs them in bf16 or fp32"
        )


def _architecture(settings: Settings) -> Architecture:
    _refuse_uncounted(settings)
    family, kind, config, size = settings.family, settings.kind, settings.values, settings.size
    heads, hidden = size("num_attention_heads"), size("hidden_size")
    stack = stack_of(settings, hidden)
    has_dense = any(layer.mlp is None for layer in stack)
    positions = 0 if kind.positions is None else size(kind.positions) + kind.more_positions
    tied = config.get("tie_embedding", kind.tied)  # LFM2's older name
    return Architecture(
        family=family,
        hidden=hidden,
        intermediate=_intermediate(settings, hidden) if has_dense else 0,
        stack=stack,
        heads=heads,
        kv_heads=size("num_key_value_heads", heads),
        head=_head(settings, hidden // heads),
        vocab=size("vocab_size"),
        tied=bool(config.get("tie_word_embeddings", tied)),
        positions=positions,
        beside=beside_width(settings),
        qkv_bias=is_set(family, kind.qkv_bias, config),
        out_bias=is_set(family, kind.out_bias, config),
        mlp_bias=is_set(family, kind.mlp_bias, config),
        qk_norm=kind.qk_norm if config.get(kind.qk_norm_if, not kind.qk_norm_if) else "",
        mlp_numbers=kept_by_mlp(kind, config),
        source=settings.source,
    )


def _refuse_uncounted(settings: Settings) -> None:
    for key in settings.kind.unplanned:
        if settings.values.get(key):
            raise ValueError(
                f"{settings.source}: {key}: true is not supported by the planner for "
                f"{settings.family}; only false is"
            )
    hidden = settings.values.get("hidden_size")
    if (projected := settings.values.get("word_embed_proj_dim", hidden)) != hidden:
        raise ValueError(
            f"{settings.source}: word_embed_proj_dim {projected} is not supported by "
            "the planner; only that of the hidden size is"
        )


def _head(settings: Settings, usual: int) -> int:
    """Numbers of a head, of latent attention those with positions."""
    if settings.kind.mixer == "latent":
        return settings.size("qk_rope_head_dim")
    return settings.size("head_dim", settings.kind.head_dim or usual)


def _intermediate(settings: Settings, hidden: int) -> int:
    if settings.family != "lfm2":
        return settings.size("intermediate_size", None if settings.kind.gated else 4 * hidden)
    config = settings.values
    width = settings.size("block_ff_dim", config.get("intermediate_size"))
    if not config.get("block_auto_adjust_ff_dim", True):
        return width
    factor, multiple = config.get("block_ffn_dim_multiplier", 1.0), 256
    width = 2 * width // 3
    if factor is None:
        return width
    multiple = settings.size("block_multiple_of", multiple)
    return -(-int(factor * width) // multiple) * multiple
