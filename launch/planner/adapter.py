"""What an adapter adds to a layer: numbers that train, and numbers of a token that are kept.

For a linear layer of `in` and `out` numbers and rank r, LoRA (arXiv 2106.09685) trains r (in + out)
and keeps r numbers of a token; DoRA (arXiv 2402.09353) trains `out` more and keeps two outputs of a
token.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.hints import did_you_mean
from training.config.adapter import ALL_LINEAR, Adapter

_DRAW_BYTES = 32
"""For a channel of a token: its key, and steps of the hash."""


@dataclass(frozen=True)
class AdaptedLinear:
    """A linear layer with an adapter."""

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class AdapterSizes:
    """Of one decoder layer; all layers are alike."""

    rank: int
    is_dora: bool
    drops: bool
    linears: tuple[AdaptedLinear, ...]

    @property
    def weights(self) -> tuple[int, ...]:
        """Numbers in each of its weights."""
        return tuple(
            size
            for linear in self.linears
            for size in (
                self.rank * linear.inputs,
                self.rank * linear.outputs,
                *((linear.outputs,) if self.is_dora else ()),
            )
        )

    def kept_bytes(self, number_bytes: int) -> int:
        """Of a token for the backward pass, beside inputs that are kept anyway."""
        return sum(
            number_bytes * (self.rank + (2 * linear.outputs if self.is_dora else 0))
            # the input with channels dropped, and which of them
            + ((number_bytes + 1) * linear.inputs if self.drops else 0)
            for linear in self.linears
        )

    def passing_bytes(self, tokens: int, number_bytes: int) -> int:
        """For a while in a forward pass of the largest layer."""
        return max(
            (_DRAW_BYTES * tokens * linear.inputs if self.drops else 0)
            + (number_bytes * _norm_numbers(linear, tokens) if self.is_dora else 0)
            for linear in self.linears
        )


def _norm_numbers(linear: AdaptedLinear, tokens: int) -> int:
    """DoRA's: an identity, the delta and two sums with the weight; an output."""
    weights = linear.inputs**2 + 3 * linear.inputs * linear.outputs
    return weights + tokens * linear.outputs


def adapter_sizes(adapter: Adapter, linear_sizes: dict[str, tuple[int, int]]) -> AdapterSizes:
    """Of a recipe's adapter.

    Args:
        linear_sizes: inputs and outputs of the layer's linear layers, by name.

    Raises:
        ValueError: for a target that is not among them.
    """
    names = linear_sizes if adapter.targets == ALL_LINEAR else adapter.targets
    for name in names:
        if name not in linear_sizes:
            there = ", ".join(linear_sizes)
            hint = did_you_mean(name, linear_sizes, otherwise=f"there are {there}")
            raise ValueError(f"adapter.targets: no linear layer is called {name}{hint}")
    linears = tuple(AdaptedLinear(n, *size) for n, size in linear_sizes.items() if n in names)
    return AdapterSizes(adapter.rank, adapter.kind == "dora", adapter.dropout > 0, linears)
