"""Halves of layers that are not llama's: mixtures of experts, latent attention, recurrences.

What they keep for the backward pass is what transformers' own code saves, counted tensor by tensor
on models of several sizes: experts in grouped products, recurrences in torch. Kernels for
recurrences, such as those of flash-linear-attention, keep less.

H is the hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

_CHUNK = 64
"""Tokens of a chunk of the gated delta rule."""


@dataclass(frozen=True)
class Part:
    """A mixer of tokens or an MLP; numbers of a token, unless it says otherwise."""

    weights: tuple[int, ...]
    """Numbers in each of its weights, in the order of their use."""
    inner: int
    """Of its widest activation."""
    idle: int = 0
    """Numbers of weights that a token does not meet."""
    kept: int = 0
    """For the backward pass, as wide as a weight."""
    kept_fp32: int = 0
    scores: int = 0
    """Operations for each token of the sample."""
    operations: int = 0
    """Beside those and products with weights."""


@dataclass(frozen=True)
class Layer:
    """What takes the place of llama's parts in a layer."""

    mixer: Part | None = None
    mlp: Part | None = None
    attends: bool = True
    """The attention is there, beside a mixer or without."""


def experts(
    hidden: int,
    *,
    number: int,
    per_token: int,
    width: int,
    shared: int = 0,
    shared_gate: bool = False,
    bias: bool = False,
) -> Part:
    """Experts that a router chooses from, and one that all tokens meet.

    Args:
        width: of an expert that is chosen.
        shared: width of the one for all.
        shared_gate: a number of each token scales it.
        bias: of router and experts; those of gpt-oss, which clamp what they multiply.
    """
    up, down = 2 * width * (hidden + bias), hidden * (width + bias)
    of_shared = (hidden * shared,) * 3 if shared else ()
    gate = (hidden,) if shared_gate else ()
    routed = (number * (hidden + bias), number * up) if number else ()
    return Part(
        weights=(*routed, *of_shared, *gate, number * down) if number else of_shared,
        inner=per_token * max(width, hidden) + shared,
        idle=(number - per_token) * (up + down),
        # the chosen rows and their outputs; gate and up, silu(gate), the product
        kept=per_token * (2 * hidden + (8 if bias else 4) * width)
        + 4 * shared
        + (hidden if shared_gate else 0),
        kept_fp32=number + 8 * per_token,  # probabilities; four indices of each choice
    )


def latent_attention(
    hidden: int,
    *,
    heads: int,
    query_rank: int | None,
    key_rank: int,
    rotated: int,
    plain: int,
    value: int,
    bias: bool,
) -> Part:
    """Queries and keys through narrow layers with a norm each (DeepSeek-V2, arXiv 2405.04434).

    Args:
        rotated: numbers of a query or key with positions; in keys the same for all heads.
        plain: numbers without.
        value: numbers of a value.
    """
    size = rotated + plain
    queries, values = heads * size, heads * value
    if query_rank:
        of_queries = [(hidden + bias) * query_rank, query_rank, query_rank * queries]
    else:
        of_queries = [hidden * queries]
    ranks = (query_rank or 0) + key_rank
    return Part(
        weights=(
            *of_queries,
            (hidden + bias) * (key_rank + rotated),
            key_rank,
            key_rank * heads * (plain + value),
            hidden * (values + bias),
        ),
        inner=queries,
        # in attention all heads are as wide as the widest; what of its output is no padding
        kept=2 * ranks + 4 * heads * max(size, value) + values,
        kept_fp32=ranks + heads + 2,
        scores=queries + values,
    )


def attention_of_own_size(
    hidden: int,
    *,
    heads: int,
    key_heads: int,
    head: int,
    has_keys: bool,
    has_values: bool,
    bias: bool,
) -> Part:
    """Of one of several sizes in a model, with norms of queries, keys and values (Gemma 4).

    Args:
        key_heads: of keys and of values.
        head: numbers of a head.
        has_keys: False where an earlier layer's keys and values are read.
        has_values: False where the keys are the values too.
    """
    queries, keys = heads * head, key_heads * head
    key = ((hidden + bias) * keys, head) if has_keys else ()
    value = ((hidden + bias) * keys,) if has_keys and has_values else ()
    return Part(
        weights=((hidden + bias) * queries, head, *key, *value, (queries + bias) * hidden),
        inner=queries,
        # keys and values repeated for all heads; the output twice
        kept=queries + 5 * queries + (keys if has_keys else 0),
        kept_fp32=queries + (2 * keys if has_keys else 0) + 2 * heads + 2 * key_heads,
        scores=2 * queries,
    )


def gated_mlp_beside(hidden: int, *, width: int, beside: int) -> Part:
    """As llama's, and behind it a gate on numbers that each layer embeds for itself (Gemma 4).

    Args:
        beside: how many of those.
    """
    of_layer = (hidden * beside, beside * hidden, hidden) if beside else ()
    return Part(
        weights=(*of_layer, *(hidden * width,) * 3),
        inner=width,
        kept=4 * width + (3 * beside + 2 * hidden if beside else 0),
        kept_fp32=hidden if beside else 0,
    )


def delta_net(
    hidden: int, *, key_heads: int, value_heads: int, key: int, value: int, kernel: int
) -> Part:
    """The gated delta rule in chunks (Yang et al., arXiv 2412.06464), a convolution before it.

    Args:
        key: numbers of a head's key.
        value: numbers of a head's value.
        kernel: tokens that the convolution sees.
    """
    keys, values = key_heads * key, value_heads * value
    mixed = 2 * keys + values
    spread = value_heads * key  # keys, repeated for all heads of values
    return Part(
        weights=(
            value_heads,
            value_heads,
            mixed * kernel,
            hidden * (mixed + values),
            hidden * 2 * value_heads,
            value,
            values * hidden,
        ),
        inner=4 * (mixed + values),
        kept=2 * mixed + 3 * values,
        kept_fp32=8 * spread
        + 6 * values
        + value_heads * (5 * _CHUNK + 12)
        + value_heads * key * value // _CHUNK,
        operations=value_heads * (6 * _CHUNK * key + 4 * _CHUNK * value + 6 * key * value),
    )


def mamba(
    hidden: int,
    *,
    inner: int,
    heads: int,
    groups: int,
    state: int,
    kernel: int,
    chunk: int,
    conv_bias: bool,
    in_bias: bool,
    out_bias: bool,
    has_norm: bool,
) -> Part:
    """Mamba-2 (Dao and Gu, arXiv 2405.21060) in chunks, a convolution before it.

    Args:
        inner: numbers of all heads together.
        state: numbers that a head has for each of its own.
        kernel: tokens that the convolution sees.
    """
    mixed = inner + 2 * groups * state
    return Part(
        weights=(
            *(heads,) * 3,
            mixed * (kernel + conv_bias),
            (hidden + in_bias) * (inner + mixed + heads),
            *((inner,) if has_norm else ()),
            hidden * (inner + out_bias),
        ),
        inner=4 * (mixed + inner),
        kept=2 * mixed + 2 * inner + 3 * heads,
        kept_fp32=(10 if has_norm else 7) * inner
        + heads * (5 * state + 3 * chunk + 5)
        + 2 * inner * state // chunk,
        operations=2 * chunk * (heads * state + inner) + 4 * inner * state,
    )


def short_convolution(hidden: int, *, kernel: int, bias: bool) -> Part:
    """Of three projections one is a gate before it and one behind (LFM2)."""
    return Part(
        weights=(
            hidden * (kernel + bias),
            3 * hidden * (hidden + bias),
            hidden * (hidden + bias),
        ),
        inner=3 * hidden,
        kept=6 * hidden,
    )
