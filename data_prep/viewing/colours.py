"""Colours of entropies: steps from certain to uncertain, the same in HTML and terminal."""

from __future__ import annotations

import math

import numpy as np

NUM_STEPS = 12
# From cool grey-blue, where the model is certain, to warm orange.
_LIGHT = ((226, 236, 246), (255, 243, 196), (255, 158, 92))
_DARK = ((31, 48, 68), (96, 84, 40), (176, 84, 28))


def top_of_scale(scores: list[np.ndarray]) -> float:
    """The score from which the last colour is used: the 99th percentile, in nats."""
    values = np.concatenate([np.zeros(0, np.float32), *scores])
    values = values[np.isfinite(values)]
    return max(float(np.quantile(values, 0.99)), 0.1) if len(values) else 1.0


def step_of(score: float, *, top: float) -> int | None:
    """The colour of a score, from 0; None for no score."""
    if not math.isfinite(score):
        return None
    return min(int(score / top * NUM_STEPS), NUM_STEPS - 1)


def css_colours(*, dark: bool) -> list[str]:
    """The steps as CSS colours."""
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in _steps(_DARK if dark else _LIGHT)]


def terminal_codes() -> list[str]:
    """The steps as background escape sequences for 256-colour terminals."""
    codes = []
    for red, green, blue in _steps(_LIGHT):
        cube = [round(channel / 255 * 5) for channel in (red, green, blue)]
        codes.append(f"\x1b[30;48;5;{16 + 36 * cube[0] + 6 * cube[1] + cube[2]}m")
    return codes


def _steps(stops: tuple[tuple[int, int, int], ...]) -> list[tuple[int, int, int]]:
    places = np.linspace(0, len(stops) - 1, NUM_STEPS)
    channels = [
        np.interp(places, range(len(stops)), channel) for channel in zip(*stops, strict=True)
    ]
    return [(round(r), round(g), round(b)) for r, g, b in zip(*channels, strict=True)]
