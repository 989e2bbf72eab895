"""The layers of a model, first to last, as its configuration has them."""

from __future__ import annotations

from launch.planner import parts
from launch.planner.families import Mixture
from launch.planner.parts import Layer, Part
from launch.planner.settings import Settings

_ATTENTIONS = ("full_attention", "sliding_attention", "attention")
_RECURRENCES = ("linear_attention", "mamba", "conv")
"""What lists of layers call them."""


def stack_of(settings: Settings, hidden: int) -> tuple[Layer, ...]:
    """Mixer and MLP of each layer.

    Raises:
        ValueError: for a kind of layer that is not known here, or a size that is not a number.
    """
    num_layers = settings.size("num_hidden_layers")
    kind = settings.kind
    if settings.family == "gemma4_text":
        return _of_several_sizes(settings, hidden, num_layers)
    mixer = _mixer(settings, hidden) if kind.mixer else None
    mlp = _experts(settings, hidden, kind.mixture) if kind.mixture else None
    is_mixed = _mixed(settings, num_layers)
    is_sparse = _sparse(settings, num_layers, kind.mixture)
    return tuple(
        Layer(
            mixer=mixer if mixed else None,
            mlp=mlp if sparse else None,
            attends=not mixed or kind.mixer == "mamba beside",
        )
        for mixed, sparse in zip(is_mixed, is_sparse, strict=True)
    )


def _of_several_sizes(settings: Settings, hidden: int, num_layers: int) -> tuple[Layer, ...]:
    """Gemma 4's: wider heads in full attention, last layers without keys of their own."""
    size, config = settings.size, settings.values
    types = settings.of_layers("layer_types", num_layers, _ATTENTIONS)
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
            key_heads = own.get("num_key_value_heads", key_heads)
            head = own.get("head_dim", head)
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
        mlp = parts.gated_mlp_beside(hidden, width=factor * width, beside=beside_width(settings))
        layers.append(Layer(mixer=mixer, mlp=mlp, attends=False))
    return tuple(layers)


def _mixed(settings: Settings, num_layers: int) -> list[bool]:
    """Which layers have the family's mixer."""
    mixer = settings.kind.mixer
    if mixer in ("", "latent", "mamba beside"):
        return [bool(mixer)] * num_layers
    types = settings.of_layers("layer_types", num_layers, (*_ATTENTIONS, *_RECURRENCES))
    types = types or settings.of_layers(
        "layers_block_type", num_layers, (*_ATTENTIONS, *_RECURRENCES)
    )
    if types:
        return [each in _RECURRENCES for each in types]
    if mixer == "delta":
        interval = settings.size("full_attention_interval", 4)
        return [(number + 1) % interval > 0 for number in range(num_layers)]
    if mixer == "convolution":
        attend = settings.values.get("full_attn_idxs")
        return [attend is not None and number not in attend for number in range(num_layers)]
    return [True] * num_layers


def _sparse(settings: Settings, num_layers: int, mixture: Mixture | None) -> list[bool]:
    """Which layers have experts."""
    if mixture is None:
        return [False] * num_layers
    if types := settings.of_layers("mlp_layer_types", num_layers, ("dense", "sparse")):
        return [each == "sparse" for each in types]
    if mixture.num_dense is not None:
        num_dense = settings.size("first_k_dense_replace", mixture.num_dense, least=0)
        return [number >= num_dense for number in range(num_layers)]
    step = settings.size("decoder_sparse_step", 1)
    dense = settings.values.get("mlp_only_layers") or ()
    return [number not in dense and (number + 1) % step == 0 for number in range(num_layers)]


def _experts(settings: Settings, hidden: int, mixture: Mixture) -> Part:
    names = [name for name in mixture.number if name in settings.values]
    least = 0 if settings.family == "granitemoehybrid" else 1
    number = settings.size(names[0] if names else mixture.number[0], least=least)
    per_token = settings.size("num_experts_per_tok") if number else 0
    if per_token > number:
        raise ValueError(
            f"{settings.source}: num_experts_per_tok {per_token} is more than the {number} experts"
        )
    width = settings.size(mixture.width) if number else 0
    shared = settings.size(mixture.shared, least=0) if mixture.shared else 0
    if mixture.num_shared:
        shared = width * settings.size(mixture.num_shared, least=0)
    return parts.experts(
        hidden,
        number=number,
        per_token=per_token,
        width=width,
        shared=shared,
        shared_gate=mixture.shared_gate,
        bias=mixture.bias,
    )


def _mixer(settings: Settings, hidden: int) -> Part:
    size, config = settings.size, settings.values
    match settings.kind.mixer:
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
    is_beside = settings.kind.mixer == "mamba beside"
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


def beside_width(settings: Settings) -> int:
    """Numbers of the embedding that each layer of Gemma 4 has of its own; 0 in other families."""
    if settings.family != "gemma4_text":
        return 0
    beside = settings.size("hidden_size_per_layer_input", 256, least=0)
    if beside and settings.size("vocab_size_per_layer_input", 262_144) != settings.size(
        "vocab_size"
    ):
        raise ValueError(
            f"{settings.source}: vocab_size_per_layer_input is not supported by the planner where "
            "it is not the vocab_size"
        )
    return beside
