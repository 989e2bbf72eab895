"""Exact global quantile of values spread over ranks, by radix histograms of fixed size.

Shapes: N values of this rank; the population is the union over all ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.distributed as dist
from torch import Tensor

_FP32_DIGIT_BITS = (11, 11, 10)
_KEY_DIGIT_BITS = (11, 11, 11, 11, 10, 10)
_SIGN_64 = -(1 << 63)
_MASK_64 = (1 << 64) - 1


@dataclass(frozen=True)
class Quantile:
    """The lower order statistic of rank `ceil(q * population)`, the same on every rank."""

    threshold: float
    """The value itself, exactly an fp32 number; -inf when the rank is 0 (nothing is low)."""
    num_at_or_below: int
    """Values of the population <= threshold."""
    population: int
    """Valid values over all ranks."""
    num_ties: int
    """Values equal to the threshold."""
    num_ties_inside: int
    """How many of the ties belong to the `ceil(q * population)` lowest."""

    @property
    def num_low(self) -> int:
        """Exactly `ceil(q * population)`."""
        return self.num_at_or_below - self.num_ties + self.num_ties_inside


def global_quantile(
    values: Tensor,
    q: float,
    *,
    valid: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> Quantile:
    """Exact `q`-quantile over all ranks of `group`.

    Args:
        values: fp32 `[N]`; N may differ between ranks and may be 0. +-inf are ordinary values.
        q: in [0, 1]. Read as the decimal that it prints as: 0.07 of 100 values is 7, though
            `0.07 * 100 > 7` in binary floating point.
        valid: bool `[N]`; the others are not part of the population.
        group: process group; None is the default group, or this process alone when
            torch.distributed is not initialised.

    Raises:
        ValueError: for q outside [0, 1], or a NaN among the valid values of any rank; the
            latter on every rank together, so that none waits for another.

    Three passes over the sortable bit pattern of fp32 (11 + 11 + 10 bits), each one int64
    all-reduce of at most 2^11 + 2 counts: the traffic does not grow with the number of values.
    """
    if not 0.0 <= q <= 1.0:
        raise ValueError(f"quantile q is {q}; it must lie in [0, 1]")
    if values.dtype != torch.float32:
        raise ValueError(f"quantile values are {values.dtype}; they must be float32")
    values = values.detach().flatten()
    if valid is not None:
        values = values[valid.flatten()]
    is_nan = torch.isnan(values)
    keys = _sortable_bits(torch.where(is_nan, math.inf, values))

    # The first histogram needs no rank, so it is reduced with the counts that give the rank.
    own_counts = torch.stack([torch.tensor(values.numel(), device=keys.device), is_nan.sum()])
    counts = torch.cat([own_counts, _histogram(keys, _FP32_DIGIT_BITS, 0)])
    _all_reduce(counts, group)
    population, num_nan = (int(count) for count in counts[:2])
    if num_nan:
        raise ValueError(f"quantile: {num_nan} of {population} values are NaN, over all ranks")
    rank = math.ceil(Fraction(repr(float(q))) * population)
    if rank == 0:
        return Quantile(-math.inf, 0, population, 0, 0)
    key, num_below, num_ties = _radix_select(
        keys, rank, _FP32_DIGIT_BITS, group, first_histogram=counts[2:]
    )
    return Quantile(
        threshold=_value_of_bits(key),
        num_at_or_below=num_below + num_ties,
        population=population,
        num_ties=num_ties,
        num_ties_inside=rank - num_below,
    )


def last_key_inside(
    keys: Tensor, num_inside: int, *, group: dist.ProcessGroup | None = None
) -> int:
    """The `num_inside`-th smallest key over all ranks, in signed order.

    Args:
        keys: int64 `[N]`, all different over the ranks of `group`.
        num_inside: at least 1 and at most the number of keys over all ranks.

    For a million keys it usually takes two passes and one more all-reduce; six at most.
    """
    key, _, _ = _radix_select(
        keys.flatten() ^ _SIGN_64, num_inside, _KEY_DIGIT_BITS, group, are_distinct=True
    )
    unsigned = key ^ (1 << 63)
    return unsigned - (1 << 64) if unsigned >> 63 else unsigned


def _radix_select(
    keys: Tensor,
    rank: int,
    digit_bits: tuple[int, ...],
    group: dist.ProcessGroup | None,
    *,
    first_histogram: Tensor | None = None,
    are_distinct: bool = False,
) -> tuple[int, int, int]:
    """The key of 1-based `rank` in unsigned order, the count below it, and the count equal to it.

    Args:
        first_histogram: over all ranks, if it is known already.
        are_distinct: a digit that only one key has ends the search: its rank knows the key.

    Worked example, one pass of 2 bits: keys 0 1 1 3, rank 3. Histogram 1 2 0 1, cumulated
    1 3 3 4; the first bucket that reaches 3 is digit 1, with 1 key below it and 2 equal to it.
    """
    chosen, num_below, num_equal = 0, 0, 0
    for number, bits in enumerate(digit_bits):
        histogram = first_histogram if number == 0 else None
        if histogram is None:
            histogram = _histogram(keys, digit_bits, number)
            _all_reduce(histogram, group)
        reached = histogram.cumsum(0)
        digit = int(torch.searchsorted(reached, rank - num_below))
        num_equal = int(histogram[digit])
        num_below += int(reached[digit]) - num_equal
        chosen = chosen << bits | digit
        keys = keys[_digits(keys, digit_bits, number) == digit]
        if are_distinct and num_equal == 1:  # the count is global: every rank stops here
            the_key = keys.sum()[None]  # 0 on ranks without it
            _all_reduce(the_key, group)
            return int(the_key) & _MASK_64, num_below, 1
    return chosen, num_below, num_equal


def _digits(keys: Tensor, digit_bits: tuple[int, ...], number: int) -> Tensor:
    bits = digit_bits[number]
    return (keys >> sum(digit_bits[number + 1 :])) & ((1 << bits) - 1)


def _histogram(keys: Tensor, digit_bits: tuple[int, ...], number: int) -> Tensor:
    return torch.bincount(_digits(keys, digit_bits, number), minlength=1 << digit_bits[number])


def _sortable_bits(values: Tensor) -> Tensor:
    """fp32 to int64 in [0, 2^32) of the same order; -0 and +0 are the same value."""
    bits = (values + 0.0).view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    return torch.where(bits >= 1 << 31, 0xFFFFFFFF - bits, bits + (1 << 31))


def _value_of_bits(key: int) -> float:
    bits = key - (1 << 31) if key >= 1 << 31 else 0xFFFFFFFF - key
    signed = bits - (1 << 32) if bits >= 1 << 31 else bits
    return torch.tensor(signed, dtype=torch.int32).view(torch.float32).item()


def _all_reduce(counts: Tensor, group: dist.ProcessGroup | None) -> None:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(counts, group=group)
