"""A real browser without a screen: the page as it is built, and as it looks."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

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


# An iframe has a width of its own, narrower than any window of a browser without a screen; its
# text is given with it, so that the script around it may look inside.
_FRAME = """<!doctype html><body style="margin:0"><script>
const frame = document.createElement("iframe");
frame.style = "border:0;width:{width}px;height:900px";
frame.srcdoc = {page};
frame.onload = () => {{
  const page = frame.contentDocument, root = page.documentElement;
  const wide = [...page.querySelectorAll("main *, #live")].filter((part) =>
    part.getBoundingClientRect().right > {width} + 1 && !part.closest("pre"));
  document.body.dataset.found = JSON.stringify({{
    overflow: root.scrollWidth - root.clientWidth,
    wide: wide.map((part) => part.tagName + ": " + part.textContent.slice(0, 40)),
    live: page.querySelectorAll("#live").length,
    images: page.images.length,
    broken: [...page.images].filter((image) => !image.naturalWidth).length,
    fetched: frame.contentWindow.performance.getEntriesByType("resource")
      .map((entry) => entry.name).filter((name) => !name.startsWith("data:")),
  }});
}};
document.body.append(frame);
</script>"""


def framed(text: str, *, width: int, folder: Path) -> Path:
    """A page that shows a page's text in a frame of this width, and says what it found there."""
    quoted = json.dumps(text).replace("</", "<\\/")
    frame = folder / f"frame-{width}.html"
    frame.write_text(_FRAME.format(width=width, page=quoted), encoding="utf-8")
    return frame


def seen_in_frame(text: str, *, width: int, folder: Path) -> dict[str, Any]:
    """What a page has at this width: parts too wide, pictures, what it fetches."""
    dom = built_page(framed(text, width=width, folder=folder), folder=folder)
    (found,) = re.findall(r'data-found="([^"]*)"', dom)
    return dict(json.loads(html.unescape(found)))
