"""The picture of a report: losses, bands, entropy, drop rate, speed, gradients over epochs."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from training.run_curves import RunCurves


@dataclass(frozen=True)
class Theme:
    """Colours of the picture on a light or a dark page."""

    background: str
    text: str
    faint: str
    runs: tuple[str, ...]
    bands: str
    """Name of the matplotlib colour map from the lowest band to the highest."""
    band_range: tuple[float, float]


# Runs: the Okabe-Ito colours, told apart by colour-blind readers as well.
LIGHT = Theme(
    background="#ffffff",
    text="#1f2328",
    faint="#d5dae0",
    runs=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9"),
    bands="plasma",
    band_range=(0.05, 0.82),
)
DARK = Theme(
    background="#161b22",
    text="#e6edf3",
    faint="#30363d",
    runs=("#56b4e9", "#ff9e4a", "#2ec4a0", "#e79ac6", "#f0e442", "#7fb3ff"),
    bands="plasma",
    band_range=(0.25, 0.95),
)


_DASHED = (0, (4, 2))
Panel = Callable[[Axes, list[RunCurves], Theme], None]


def draw_png(
    runs: list[RunCurves], *, theme: Theme, panels: tuple[Panel, ...], columns: int
) -> bytes:
    """Panels over epochs, row by row, as a PNG."""
    with matplotlib.rc_context(_settings(theme)):
        rows = math.ceil(len(panels) / columns)
        figure = Figure(
            figsize=(5.75 * columns, 3.66 * rows),
            dpi=120,
            facecolor=theme.background,
            layout="constrained",
        )
        last_epoch = max(run.steps[-1]["epoch"] for run in runs)
        for place, draw in enumerate(panels, start=1):
            axes = figure.add_subplot(rows, columns, place)
            draw(axes, runs, theme)
            axes.set(xlabel="epoch", xlim=(0, last_epoch * 1.02))
            axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
        if len(runs) > 1:
            lines = [
                Line2D([], [], color=color, label=run.name, linewidth=3)
                for run, color in _with_colors(runs, theme)
            ]
            figure.legend(handles=lines, loc="outside upper left", ncols=2 * columns, fontsize=10)
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


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
        "axes.titlepad": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.h_pad": 0.16,
        "figure.constrained_layout.w_pad": 0.16,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.faint,
        "grid.linewidth": 0.7,
        "xtick.color": theme.text,
        "ytick.color": theme.text,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.linewidth": 1.8,
        "lines.markersize": 4,
    }


def _draw_loss(panel: Axes, runs: list[RunCurves], theme: Theme) -> None:
    for run, color in _with_colors(runs, theme):
        epochs, losses = run.step_series("loss")
        panel.plot(epochs, losses, color=color, alpha=0.22, linewidth=0.9)
        panel.plot(epochs, smoothed(losses), color=color, linestyle=_DASHED, label="training")
        epochs, losses = run.heldout_series()
        if epochs:
            panel.plot(epochs, losses, color=color, marker="o", label="held-out")
        if best := run.best_evaluation:
            panel.plot(
                [best["epoch"]],
                [best["loss"]],
                marker="*",
                markersize=14,
                color=color,
                markeredgecolor=theme.background,
                linestyle="none",
                label=f"best held-out {best['loss']:.3f}",
                zorder=5,
            )
    panel.set(ylabel="nats per token")
    _finish(panel, runs, title="Loss", key="solid held-out, dashed training, star best")


def _draw_bands(panel: Axes, runs: list[RunCurves], theme: Theme) -> None:
    title = "Held-out loss by entropy band"
    panel.set(title=title, ylabel="nats per token")
    if not any(run.bands for run in runs):
        _say_nothing_to_draw(panel, "no held-out evaluation by band")
        return
    if len(runs) == 1:
        bands = runs[0].bands
        colors = matplotlib.colormaps[theme.bands](np.linspace(*theme.band_range, len(bands)))
        # A model without training is equally unsure everywhere: the edges differ in late digits.
        edges = [band["from_nats"] for band in bands] + [bands[-1]["to_nats"]]
        digits = 2 if len({f"{edge:.2f}" for edge in edges}) == len(edges) else 4
        for band, color in reversed(list(zip(bands, colors, strict=True))):
            between = f"{band['from_nats']:.{digits}f} to {band['to_nats']:.{digits}f} nats"
            label = f"band {band['band']}: {between}"
            epochs, losses = runs[0].band_series(band["band"])
            panel.plot(epochs, losses, color=color, marker="o", label=label)
        panel.legend(title="entropy at step 0", title_fontsize=9, alignment="left")
        return
    # All bands of all runs would be a thicket: the two ends tell the story.
    for run, color in _with_colors(runs, theme):
        if run.bands:
            panel.plot(*run.band_series(run.bands[-1]["band"]), color=color)
            panel.plot(*run.band_series(1), color=color, linestyle=_DASHED)
    _finish(panel, runs, title=title, key="solid highest, dashed lowest")


def _draw_entropy(panel: Axes, runs: list[RunCurves], theme: Theme) -> None:
    for run, color in _with_colors(runs, theme):
        epochs, means = run.step_series("mean_entropy_nats")
        panel.plot(epochs, smoothed(means), color=color, linestyle=_DASHED, label="mean")
        epochs, thresholds = run.step_series("entropy_threshold_nats")
        if not all(map(math.isnan, thresholds)):
            panel.plot(epochs, smoothed(thresholds), color=color, label="threshold")
    panel.set(ylabel="nats", ylim=(0, None))
    _finish(panel, runs, title="Token entropy in training", key="solid threshold, dashed mean")


def _draw_drop_rate(panel: Axes, runs: list[RunCurves], theme: Theme) -> None:
    for run, color in _with_colors(runs, theme):
        epochs, realised = run.step_series("drop_rate_realised")
        panel.plot(epochs, realised, color=color, alpha=0.45, linewidth=1.0, label="realised")
        epochs, asked = run.step_series("drop_rate_asked")
        panel.plot(epochs, asked, color=color, linewidth=2.2, label="asked")
    panel.set(ylabel="share of the step's targets", ylim=(0, None))
    panel.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
    _finish(panel, runs, title="Tokens dropped", key="thick asked, thin realised")


def _draw_speed(panel: Axes, runs: list[RunCurves], theme: Theme) -> None:
    _draw_one(panel, runs, theme, key="tokens_per_second")
    panel.set(title="Speed", ylabel="tokens / second", ylim=(0, None))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _draw_gradient_norm(panel: Axes, runs: list[RunCurves], theme: Theme) -> None:
    _draw_one(panel, runs, theme, key="grad_norm")
    panel.set(title="Gradient norm before clipping", ylabel="norm", ylim=(0, None))


def _draw_one(panel: Axes, runs: list[RunCurves], theme: Theme, *, key: str) -> None:
    for run, color in _with_colors(runs, theme):
        epochs, values = run.step_series(key)
        panel.plot(epochs, values, color=color, alpha=0.25, linewidth=0.9)
        panel.plot(epochs, smoothed(values), color=color)


def _with_colors(runs: list[RunCurves], theme: Theme) -> list[tuple[RunCurves, str]]:
    return [(run, theme.runs[index % len(theme.runs)]) for index, run in enumerate(runs)]


def _finish(panel: Axes, runs: list[RunCurves], *, title: str, key: str) -> None:
    """One run: a legend in the panel. Several: the line styles go into the title's second line."""
    if len(runs) == 1:
        panel.set(title=title)
        panel.legend()
    else:
        panel.set(title=f"{title}\n")
        panel.annotate(
            key, (0, 1), (0, 10), "axes fraction", textcoords="offset points", fontsize=9, alpha=0.8
        )


def _say_nothing_to_draw(panel: Axes, text: str) -> None:
    panel.text(0.5, 0.5, text, transform=panel.transAxes, ha="center", va="center", alpha=0.7)
    panel.set_yticks([])


def smoothed(values: list[float]) -> list[float]:
    """Running mean over a fiftieth of the series; NaN counts for nothing in a window."""
    half = len(values) // 100
    array = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(array)
    # prefix sums: the window [i - half, i + half] costs the same for every width
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, array, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(array))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(array))
    count = counts[high] - counts[low]
    means = (sums[high] - sums[low]) / np.maximum(count, 1)
    return np.where(count > 0, means, np.nan).tolist()


PANELS: tuple[Panel, ...] = (
    _draw_loss,
    _draw_bands,
    _draw_entropy,
    _draw_drop_rate,
    _draw_speed,
    _draw_gradient_norm,
)
