"""Grids of cases of which each run of the tests takes a part, and `make test-all` the whole."""

from __future__ import annotations

import os

WHOLE = bool(os.environ.get("ENTRODROP_WHOLE_GRIDS"))


def is_taken(*numbers: int) -> bool:
    """Of a grid of which one axis has two values, half: any value of an axis meets any of another.

    Args:
        numbers: of the case on each axis, from 0.
    """
    return WHOLE or sum(numbers) % 2 == 0
