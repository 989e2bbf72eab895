"""Reads a model's sizes out of its configuration, as Hugging Face writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.hints import did_you_mean
from launch.planner import parts
from launch.planner.architecture import Architecture
from launch.planner.families import FAMILIES, Mixture, is_set, kept_by_mlp
from launch.planner.parts import Layer, Part

_ATTENTIONS = ("full_attention", "sliding_attention", "attention")
_RECURRENCES = ("linear_attention", "mamba", "conv")
"""What lists of layers call them."""


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
    return _Reader(family, config, source).architecture()


def _refuse_quantized(config: Mapping[str, Any], source: str) -> None:
    """As training does: there are no numbers to train."""
    if quantized := config.get("quantization_config"):
        kind = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise ValueError(
            f"{source}: its weights are quantized ({kind}); training needs them in bf16 or fp32"
        )


class _Reader:
    """A configuration of a family that is known."""

    def __init__(self, family: str, config: Mapping[str, Any], source: str) -> None:
        self._family, self._config, self._source = family, config, source
        self._kind = FAMILIES[family]

    def architecture(self) -> Architecture:
        self._refuse_uncounted()
        kind, config, size = self._kind, self._config, self._size
        heads, hidden = size("num_attention_heads"), size("hidden_size")
        stack = self._stack(hidden)
        has_dense = any(layer.mlp is None for layer in stack)
        positions = 0 if kind.positions is None else size(kind.positions) + kind.more_positions
        return Architecture(
            family=self._family,
            hidden=hidden,
            intermediate=self._intermediate(hidden) if has_dense else 0,
            stack=stack,
            heads=heads,
            kv_heads=size("num_key_value_heads", heads),
            head=self._head(hidden // heads),
            vocab=size("vocab_size"),
            tied=self._is_tied(),
            positions=positions,
            beside=self._beside(),
            qkv_bias=is_set(self._family, kind.qkv_bias, config),
            out_bias=is_set(self._family, kind.out_bias, config),
            mlp_bias=is_set(self._family, kind.mlp_bias, config),
            qk_norm=kind.qk_norm if config.get(kind.qk_norm_if, not kind.qk_norm_if) else "",
            mlp_numbers=kept_by_mlp(kind, config),
            source=self._source,
        )

    def _refuse_uncounted(self) -> None:
        for key in self._kind.unplanned:
            if self._config.get(key):
                raise ValueError(
                    f"{self._source}: {key}: true is not supported by the planner for "
                    f"{self._family}; only false is"
                )
        hidden = self._config.get("hidden_size")
        if (projected := self._config.get("word_embed_proj_dim", hidden)) != hidden:
            raise ValueError(
                f"{self._source}: word_embed_proj_dim {projected} is not supported by "
                "the planner; only that of the hidden size is"
            )

    def _size(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        default = self._kind.usual.get(key, default)
        key = self._kind.names.get(key, key)
        value = self._config.get(key, default)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            wanted = "an integer above 0" if least else "0 or an integer above it"
            raise ValueError(f"{self._source}: {key} must be {wanted} (is {value!r})")
        return value

    def _head(self, usual: int) -> int:
        """Numbers of a head, of latent attention those with positions."""
        if self._kind.mixer == "latent":
            return self._size("qk_rope_head_dim")
        return self._size("head_dim", self._kind.head_dim or usual)

    def _is_tied(self) -> bool:
        usual = self._config.get("tie_embedding", self._kind.tied)  # LFM2's older name
        return bool(self._config.get("tie_word_embeddings", usual))

    def _intermediate(self, hidden: int) -> int:
        if self._family != "lfm2":
            return self._size("intermediate_size", None if self._kind.gated else 4 * hidden)
        width = self._size("block_ff_dim", self._config.get("intermediate_size"))
        if not self._config.get("block_auto_adjust_ff_dim", True):
            return width
        factor, multiple = self._config.get("block_ffn_dim_multiplier", 1.0), 256
        width = 2 * width // 3
        if factor is None:
            return width
        multiple = self._size("block_multiple_of", multiple)
        return -(-int(factor * width) // multiple) * multiple

    def _stack(self, hidden: int) -> tuple[Layer, ...]:
        num_layers = self._size("num_hidden_layers")
        kind = self._kind
        if self._family == "gemma4_text":
            return self._of_several_sizes(hidden, num_layers)
        mixer = self._mixer(hidden) if kind.mixer else None
        mlp = self._experts(hidden, kind.mixture) if kind.mixture else None
        is_mixed = self._mixed(num_layers)
        is_sparse = self._sparse(num_layers, kind.mixture)
        return tuple(
            Layer(
                mixer=mixer if mixed else None,
                mlp=mlp if sparse else None,
                attends=not mixed or kind.mixer == "mamba beside",
            )
            for mixed, sparse in zip(is_mixed, is_sparse, strict=True)
        )

    def _beside(self) -> int:
        if self._family != "gemma4_text":
            return 0
        beside = self._size("hidden_size_per_layer_input", 256, least=0)
        if beside and self._size("vocab_size_per_layer_input", 262_144) != self._size("vocab_size"):
            raise ValueError(
                f"{self._source}: vocab_size_per_layer_input is not supported by the planner where "
                "it is not the vocab_size"
            )
        return beside

    def _of_several_sizes(self, hidden: int, num_layers: int) -> tuple[Layer, ...]:
        """Gemma 4's: wider heads in full attention, last layers without keys of their own."""
        size, config = self._size, self._config
        types = self._of_layers("layer_types", num_layers, _ATTENTIONS)
        types = types or ["full_attention" if n % 6 == 5 else "sliding" for n in range(num_layers)]
        types[-1] = "full_attention"
        num_own = num_layers - size("num_kv_shared_layers", 0, least=0)
        width = size("intermediate_size")
        has_one = bool(config.get("attention_k_eq_v"))
        written = config.get("per_layer_config")  # by transformers, in place of both global sizes
        layers = []
        for number, name in enumerate(types):
            is_full, is_own = name == "full_attention", number < num_own
            key_heads, head = size("num_key_value_heads", 4), size("head_dim", 256)
            if written is not None:
                own = written.get(str(number), written.get(number, {}))
                key_heads, head = (
                    own.get("num_key_value_heads", key_heads),
                    own.get("head_dim", head),
                )
            elif is_full:
                head = size("global_head_dim", 512)
                key_heads = size("num_global_key_value_heads", key_heads) if has_one else key_heads
            mixer = parts.attention_of_own_size(
                hidden,
                heads=size("num_attention_heads", 8),
                key_heads=key_heads,
                head=head,
                has_keys=is_own,
                has_values=not (is_full and has_one),
                bias=bool(config.get("attention_bias")),
            )
            factor = 2 if config.get("use_double_wide_mlp") and not is_own else 1
            mlp = parts.gated_mlp_beside(hidden, width=factor * width, beside=self._beside())
            layers.append(Layer(mixer=mixer, mlp=mlp, attends=False))
        return tuple(layers)

    def _mixed(self, num_layers: int) -> list[bool]:
        """Which layers have the family's mixer."""
        mixer = self._kind.mixer
        if mixer in ("", "latent", "mamba beside"):
            return [bool(mixer)] * num_layers
        types = self._of_layers("layer_types", num_layers, (*_ATTENTIONS, *_RECURRENCES))
        types = types or self._of_layers(
            "layers_block_type", num_layers, (*_ATTENTIONS, *_RECURRENCES)
        )
        if types:
            return [each in _RECURRENCES for each in types]
        if mixer == "delta":
            interval = self._size("full_attention_interval", 4)
            return [(number + 1) % interval > 0 for number in range(num_layers)]
        if mixer == "convolution":
            attend = self._config.get("full_attn_idxs")
            return [attend is not None and number not in attend for number in range(num_layers)]
        return [True] * num_layers

    def _sparse(self, num_layers: int, mixture: Mixture | None) -> list[bool]:
        """Which layers have experts."""
        if mixture is None:
            return [False] * num_layers
        if types := self._of_layers("mlp_layer_types", num_layers, ("dense", "sparse")):
            return [each == "sparse" for each in types]
        if mixture.num_dense is not None:
            num_dense = self._size("first_k_dense_replace", mixture.num_dense, least=0)
            return [number >= num_dense for number in range(num_layers)]
        step = self._size("decoder_sparse_step", 1)
        dense = self._config.get("mlp_only_layers") or ()
        return [number not in dense and (number + 1) % step == 0 for number in range(num_layers)]

    def _of_layers(self, key: str, num_layers: int, known: tuple[str, ...]) -> list[str]:
        """A setting with a name for each layer; empty where the model has none."""
        names = self._config.get(key) or []
        if names and len(names) != num_layers:
            raise ValueError(
                f"{self._source}: {key} has {len(names)} entries for {num_layers} layers"
            )
        for name in names:
            if name not in known:
                raise ValueError(
                    f"{self._source}: {key} {name} is not supported by the planner; "
                    f"supported are {', '.join(known)}"
                )
        return list(names)

    def _experts(self, hidden: int, mixture: Mixture) -> Part:
        names = [name for name in mixture.number if name in self._config]
        least = 0 if self._family == "granitemoehybrid" else 1
        number = self._size(names[0] if names else mixture.number[0], least=least)
        per_token = self._size("num_experts_per_tok") if number else 0
        if per_token > number:
            raise ValueError(
                f"{self._source}: num_experts_per_tok {per_token} is more than the {number} experts"
            )
        width = self._size(mixture.width) if number else 0
        shared = self._size(mixture.shared, least=0) if mixture.shared else 0
        if mixture.num_shared:
            shared = width * self._size(mixture.num_shared, least=0)
        return parts.experts(
            hidden,
            number=number,
            per_token=per_token,
            width=width,
            shared=shared,
            shared_gate=mixture.shared_gate,
            bias=mixture.bias,
        )

    def _mixer(self, hidden: int) -> Part:
        size, config = self._size, self._config
        match self._kind.mixer:
            case "latent":
                return parts.latent_attention(
                    hidden,
                    heads=size("num_attention_heads"),
                    query_rank=size("q_lora_rank", 0, least=0),
                    key_rank=size("kv_lora_rank"),
                    rotated=size("qk_rope_head_dim"),
                    plain=size("qk_nope_head_dim"),
                    value=size("v_head_dim"),
                    bias=bool(config.get("attention_bias")),
                )
            case "delta":
                return parts.delta_net(
                    hidden,
                    key_heads=size("linear_num_key_heads"),
                    value_heads=size("linear_num_value_heads"),
                    key=size("linear_key_head_dim"),
                    value=size("linear_value_head_dim"),
                    kernel=size("linear_conv_kernel_dim", 4),
                )
            case "convolution":
                return parts.short_convolution(
                    hidden, kernel=size("conv_L_cache", 3), bias=bool(config.get("conv_bias"))
                )
        is_beside = self._kind.mixer == "mamba beside"
        inner = size("mamba_expand", 2) * hidden
        if is_beside:
            inner = size("mamba_d_ssm", inner)
        in_bias = bool(config.get("mamba_proj_bias"))
        return parts.mamba(
            hidden,
            inner=inner,
            heads=size("mamba_n_heads"),
            groups=size("mamba_n_groups", 1),
            state=size("mamba_d_state"),
            kernel=size("mamba_d_conv", 4),
            chunk=size("mamba_chunk_size", 256),
            conv_bias=bool(config.get("mamba_conv_bias", True)),
            in_bias=in_bias,
            out_bias=bool(config.get("projectors_bias")) if is_beside else in_bias,
            has_norm=not is_beside or bool(config.get("mamba_rms_norm")),
        )
