"""Canaries: lines with a random secret in a training slice, to measure memorisation."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

_NUM_DIGITS = 8


@dataclass(frozen=True)
class Canary:
    """One line; rivals have the same shape and were never trained on."""

    prefix: str
    secret: str
    rivals: tuple[str, ...]

    @property
    def text(self) -> str:
        return self.prefix + self.secret


def make_canaries(
    seed: int, *, count: int, num_rivals: int, is_usable: Callable[[str], bool]
) -> list[Canary]:
    """The same for the same seed.

    Args:
        is_usable: whether a line may be in a slice, for example because the build will not hold
            it out.
    """
    draws = random.Random(f"canaries {seed}")
    canaries: list[Canary] = []
    while len(canaries) < count:
        name = "".join(draws.choices("abcdefghijklmnopqrstuvwxyz", k=6))
        prefix = f"The number of {name} is"
        secret, *rivals = (_digits(draws) for _ in range(1 + num_rivals))
        canary = Canary(prefix, secret, tuple(rivals))
        if is_usable(canary.text):
            canaries.append(canary)
    return canaries


def _digits(draws: random.Random) -> str:
    """A space before each digit keeps a tokenizer from joining them."""
    return "".join(f" {digit}" for digit in draws.choices("0123456789", k=_NUM_DIGITS))
