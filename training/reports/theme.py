"""How diagrams of a report look: colours of a light and a dark page, fonts, axes, the figure."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator
from matplotlib.transforms import Bbox
from numpy.typing import NDArray
from PIL import Image

from training.reports.groups import RunGroup

Picture = NDArray[np.uint8]
"""`[height, width, 4]`, red, green, blue, alpha."""


@dataclass(frozen=True)
class Theme:
    """Colours of the picture on a light or a dark page."""

    background: str
    text: str
    faint: str
    warning: str
    groups: tuple[str, ...]
    bands: str
    """Name of the matplotlib colour map from the lowest band to the highest; of many groups too."""
    band_range: tuple[float, float]

    def group_colors(self, num_groups: int) -> list[str]:
        """Distinct ones for a few groups; for more groups, steps of a colour map."""
        if num_groups <= len(self.groups):
            return list(self.groups[:num_groups])
        return self.steps(num_groups)

    def steps(self, num: int) -> list[str]:
        """Colours in an order that the eye follows."""
        colors = matplotlib.colormaps[self.bands](np.linspace(*self.band_range, num))
        return [to_hex(color) for color in colors]


# Groups: the Okabe-Ito colours, distinguishable for colour-blind readers as well.
LIGHT = Theme(
    background="#ffffff",
    text="#1f2328",
    faint="#d5dae0",
    warning="#b54708",
    groups=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9"),
    bands="plasma",
    band_range=(0.05, 0.82),
)
DARK = Theme(
    background="#161b22",
    text="#e6edf3",
    faint="#30363d",
    warning="#f5a524",
    groups=("#56b4e9", "#ff9e4a", "#2ec4a0", "#e79ac6", "#f0e442", "#7fb3ff"),
    bands="plasma",
    band_range=(0.25, 0.95),
)
THEMES = (LIGHT, DARK)


@dataclass(frozen=True)
class Panel:
    """One diagram of a report."""

    name: str
    """Of its file."""
    title: str
    caption: str
    """How it is to be read."""
    draw: Callable[[Axes, list[RunGroup], Theme], None]


def draw_panel(groups: list[RunGroup], panel: Panel) -> dict[Theme, Picture]:
    """A diagram over epochs, with tokens along the top, its letters readable on a phone.

    In every theme; the layout is half of the work and is computed once.
    """
    pictures: dict[Theme, Picture] = {}
    places: list[Bbox] = []
    for theme in THEMES:
        with matplotlib.rc_context(_settings(theme)):
            figure = _figure(theme, height=3.7)
            axes = figure.add_subplot()
            panel.draw(axes, groups, theme)
            has_tokens = _set_epochs(axes, groups)
            # matplotlib would find its height by measuring all letters again and again
            axes.set_title(panel.title, y=1.0, pad=30 if has_tokens else 8)
            if places:
                figure.set_layout_engine("none")
                for each, place in zip(figure.axes, places, strict=True):
                    each.set_position(place)
            pictures[theme] = _drawn(figure)
            places = [each.get_position(original=True) for each in figure.axes]
    return pictures


def draw_key(groups: list[RunGroup], *, theme: Theme) -> Picture:
    """Which colour is which group, in a column as wide as a panel."""
    colors = theme.group_colors(len(groups))
    lines = [
        Line2D([], [], color=color, label=group.name, linewidth=3)
        for group, color in zip(groups, colors, strict=True)
    ]
    with matplotlib.rc_context(_settings(theme)):
        figure = _figure(theme, height=0.35 + 0.24 * len(groups))
        figure.legend(handles=lines, loc="upper left", fontsize=10)
        return _drawn(figure)


def tiled(pictures: list[Picture], *, theme: Theme, columns: int) -> Picture:
    """Pictures row by row on one background."""
    background = np.array([*to_rgb(theme.background), 1.0]) * 255
    rows = []
    for start in range(0, len(pictures), columns):
        row = pictures[start : start + columns]
        height, width = max(len(found) for found in row), row[0].shape[1]
        canvas = np.full((height, width * columns, 4), background.round(), dtype=np.uint8)
        for column, found in enumerate(row):
            canvas[: len(found), column * width : (column + 1) * width] = found
        rows.append(canvas)
    return np.concatenate(rows)


def as_png(picture: Picture) -> bytes:
    """The bytes of its file, the same for the same picture."""
    buffer = io.BytesIO()
    Image.fromarray(picture[..., :3]).save(buffer, format="png", compress_level=1)
    return buffer.getvalue()


def _figure(theme: Theme, *, height: float) -> Figure:
    size = (5.2, height)
    return Figure(figsize=size, dpi=180, facecolor=theme.background, layout="constrained")


def _drawn(figure: Figure) -> Picture:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())


def _set_epochs(axes: Axes, groups: list[RunGroup]) -> bool:
    """Label the axis of epochs; whether there is one of tokens, too."""
    last = [run.steps[-1] for group in groups for run in group.runs]
    axes.set(xlabel="epochs", xlim=(0, max(row["epoch"] for row in last) * 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    ratios = [row["tokens"] / row["epoch"] for row in last if row["epoch"]]
    if not ratios or max(ratios) > 1.01 * min(ratios):
        return False  # corpora of different sizes: one axis cannot be right for all
    tokens = axes.secondary_xaxis(
        "top", functions=(lambda x: x * ratios[0], lambda x: x / ratios[0])
    )
    tokens.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    tokens.xaxis.set_major_formatter(EngFormatter(sep=""))
    tokens.tick_params(labelsize=8, length=2)
    tokens.set_xlabel("tokens", fontsize=8, labelpad=2, loc="right")
    return True


def _settings(theme: Theme) -> dict[Any, Any]:
    return {
        "font.size": 10,
        "font.family": "sans-serif",
        "text.color": theme.text,
        "axes.labelcolor": theme.text,
        "axes.edgecolor": theme.faint,
        "axes.facecolor": theme.background,
        "axes.titlesize": 11.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.h_pad": 0.1,
        "figure.constrained_layout.w_pad": 0.1,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.faint,
        "grid.linewidth": 0.7,
        "xtick.color": theme.text,
        "ytick.color": theme.text,
        "xtick.major.size": 3,
        "ytick.major.size": 3,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "lines.linewidth": 1.8,
        "lines.markersize": 3.5,
    }
