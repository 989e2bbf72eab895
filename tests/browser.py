"""A real browser without a screen: the page as it is built, and as it looks."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-component-update",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
)


def _run(page: Path | str, *flags: str, folder: Path, is_dark: bool = False) -> str:
    browser = next(filter(None, map(shutil.which, _NAMES)), None)
    if browser is None:
        pytest.skip("needs Chromium")
    dark = ["--blink-settings=preferredColorScheme=0"] if is_dark else []
    url = page if isinstance(page, str) else page.as_uri()
    done = subprocess.run(
        [browser, *_FLAGS, *dark, f"--user-data-dir={folder / 'profile'}", *flags, url],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def built_page(page: Path | str, *, folder: Path, seconds: float = 0.0) -> str:
    """The document after the browser has read it and run its script.

    Args:
        page: a file, or an address.
        seconds: how long its timers go on; time passes at once while nothing is awaited.
    """
    budget = [f"--virtual-time-budget={round(1000 * seconds)}"] if seconds else []
    return _run(page, "--dump-dom", *budget, folder=folder)


def picture(
    page: Path, *, folder: Path, width: int, height: int = 900, is_dark: bool = False
) -> np.ndarray:
    """What the window shows, `[height, width, 3]` in [0, 1]; kept as a PNG in the folder."""
    out = folder / f"{page.stem}-{width}{'-dark' if is_dark else ''}.png"
    size = f"--window-size={width},{height}"
    _run(page, f"--screenshot={out}", size, folder=folder, is_dark=is_dark)
    return matplotlib.image.imread(out)[..., :3]


def share_of_colour(image: np.ndarray, colour: str, *, tolerance: float = 0.02) -> float:
    """Share of the pixels within `tolerance` of a CSS colour such as #ff9e5c."""
    wanted = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return float((np.abs(image - wanted).max(axis=-1) < tolerance).mean())
