"""Counter-based random numbers: a token's draw depends on its identity, never on the layout.

Shapes: any. Keys are int64 tensors, read as 64 unsigned bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

# splitmix64 finaliser (Steele, Lea, Flood: Fast splittable pseudorandom number generators,
# OOPSLA 2014; constants of Stafford's mix 13). It is a bijection of 64 bits, so two tokens
# of a run never share a key.
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1

TIE_STREAM = 1
DROP_STREAM = 2
REPLACE_STREAM = 3
NOISE_STREAM = 4
HIDDEN_STREAM = 5
PROOF_STREAM = 6
MLP_STREAM = 7
ATTENTION_STREAM = 8
DEPTH_STREAM = 9
RATE_STREAM = 10
REPLACED_STREAM = 11
REPLACEMENT_STREAM = 12
ADAPTER_STREAM = 13


def token_keys(token_index: Tensor, *, seed: int, stream: int) -> Tensor:
    """Hash of each token's index, int64 of the same shape, a bijection for given seed and stream.

    Args:
        token_index: int64, unique for each (times seen, sample, position):
            `(times_seen * num_samples + sample) * sequence_tokens + position`.
        seed: the run's seed.
        stream: separates the uses (ties, drops, replacements) of one seed.
    """
    offset = _mix_int(_mix_int(seed) ^ (stream * _GOLDEN & _MASK))
    key = token_index + _signed(offset)  # int64 wraps around, as the algorithm requires
    key = (key ^ _shift_right(key, 30)) * _signed(_MIX_1)
    key = (key ^ _shift_right(key, 27)) * _signed(_MIX_2)
    return key ^ _shift_right(key, 31)


def uniform_from_keys(keys: Tensor) -> Tensor:
    """Uniform fp64 numbers in [0, 1) from the upper 53 bits of each key."""
    return _shift_right(keys, 11).to(torch.float64) * 2.0**-53


def integers_from_keys(keys: Tensor, *, high: int) -> Tensor:
    """Uniform int64 numbers in [0, high) for `high` up to 2^31; the bias is below 2^-31."""
    return _shift_right(keys, 1) % high


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # torch's >> keeps the sign; this does not


def _mix_int(x: int) -> int:
    x = (x + _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * _MIX_1) & _MASK
    x = ((x ^ (x >> 27)) * _MIX_2) & _MASK
    return x ^ (x >> 31)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x
