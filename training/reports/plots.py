"""The diagrams of a report: losses, bands, entropy, drop rate, speed, gradients over epochs."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from training.reports.groups import Curve, RunGroup
from training.reports.theme import Panel, Theme

_DASHED = (0, (4, 2))
_RANDOM_START = (
    "A model that begins with random weights is about equally uncertain of every token, and its "
    "bands say little."
)
_MOST_BAND_PANELS = 4
_MOST_SET_PANELS = 4


def panels_of(groups: list[RunGroup]) -> list[Panel]:
    """The diagrams to draw: the bands of one group share a diagram, those of several do not."""
    styles = "" if len(groups) == 1 else "Shaded: from the lowest to the highest seed. "
    return [
        Panel(
            "loss",
            "Loss",
            f"Solid: held-out; dashed: training; star: best. {styles}"
            "Dotted line: first warning of the run that it rises.",
            _draw_loss,
        ),
        *_set_panels(groups),
        *_band_panels(groups),
        Panel(
            "entropy",
            "Token entropy in training",
            "Solid: the threshold below which a token is low; dashed: mean over all targets.",
            _draw_entropy,
        ),
        Panel(
            "dropped",
            "Tokens dropped",
            "Share of a step's targets. Thick: asked; thin: realised.",
            _draw_drop_rate,
        ),
        Panel("speed", "Throughput", "Trained tokens per second, all processes.", _draw_speed),
        Panel("gradient", "Gradient norm", "Before clipping.", _draw_gradient_norm),
    ]


def _set_panels(groups: list[RunGroup]) -> list[Panel]:
    """Where there are several held-out sets: all of one group in a diagram, else one per set."""
    names = [n for n in groups[0].set_names if all(n in group.set_names for group in groups)]
    if len(names) < 2:
        return []
    if len(groups) == 1:
        caption = (
            "Above 0: forgotten since the first step; below 0: learnt. A star marks the best of "
            "each set."
        )
        return [Panel("forgetting", "Forgetting by held-out set", caption, _draw_forgetting)]
    caption = "In nats; the dotted line is the loss before the first step."
    return [
        Panel(f"set_{name}", f"Held-out loss, {name}", caption, partial(_draw_one_set, name=name))
        for name in names[:_MOST_SET_PANELS]
    ]


def _band_panels(groups: list[RunGroup]) -> list[Panel]:
    """One diagram of all bands; one per band where groups are compared: the ends, some between."""
    title = "Held-out loss by entropy band"
    num_bands = min((len(group.bands) for group in groups), default=0)
    if num_bands == 0:
        return []
    if len(groups) == 1:
        caption = (
            "Held-out tokens by the entropy that the model gave them before the first step; a "
            f"star marks the best of each band. {_RANDOM_START}"
        )
        return [Panel("bands", title, caption, _draw_bands)]
    shown = np.linspace(1, num_bands, min(num_bands, _MOST_BAND_PANELS)).round().astype(int)
    panels = []
    for band in shown.tolist():
        where = {1: ", the most certain tokens", num_bands: ", the least certain tokens"}.get(
            band, ""
        )
        caption = f"Held-out tokens in band {band} of {num_bands}{where}."
        if band == 1:
            caption += f" {_RANDOM_START}"
        draw = partial(_draw_one_band, band=band)
        panels.append(Panel(f"band_{band}", f"Held-out loss, band {band}", caption, draw))
    return panels


def _draw_loss(panel: Axes, groups: list[RunGroup], theme: Theme) -> None:
    seen: list[float] = []
    for group, color in _with_colors(groups, theme):
        training, heldout = group.step_curve("loss"), group.heldout_curve()
        if len(groups) == 1 and len(group.runs) == 1:
            panel.plot(training.epochs, training.mean, color=color, alpha=0.2, linewidth=0.8)
        line: dict[str, Any] = {"color": color, "linestyle": _DASHED, "linewidth": 1.3}
        panel.plot(training.epochs, smoothed(training.mean), **line, label="training")
        _plot(panel, heldout, color=color, theme=theme, marks_best=True, label="held-out")
        _draw_warning(panel, group, color if len(groups) > 1 else theme.warning)
        seen += [*_later(smoothed(training.mean)), *_later(heldout.mean)]
    panel.set(ylabel="nats per token")
    _zoom(panel, seen)
    if len(groups) == 1:
        panel.legend()


def _draw_warning(panel: Axes, group: RunGroup, color: str) -> None:
    """Where the seeds of a group first warned, the mean of those that did."""
    epochs = [run.warnings[0][0] for run in group.runs if run.warnings]
    if epochs:
        epoch = sum(epochs) / len(epochs)
        panel.axvline(epoch, color=color, linestyle=":", linewidth=1.4, label="first warning")


def _draw_bands(panel: Axes, groups: list[RunGroup], theme: Theme) -> None:
    (group,) = groups
    bands = group.bands
    # An untrained model is equally uncertain everywhere: the edges differ in late digits.
    edges = [band["from_nats"] for band in bands] + [bands[-1]["to_nats"]]
    digits = 2 if len({f"{edge:.2f}" for edge in edges}) == len(edges) else 4
    for band, color in reversed(list(zip(bands, theme.steps(len(bands)), strict=True))):
        between = f"{band['from_nats']:.{digits}f} to {band['to_nats']:.{digits}f}"
        curve = group.band_curve(band["band"])
        label = f"{band['band']}: {between} nats"
        _plot(panel, curve, color=color, theme=theme, marks_best=True, label=label)
    panel.set(ylabel="nats per token")
    if len(bands) <= 6:
        panel.legend(title="band: entropy at step 0", title_fontsize=8.5, alignment="left")


def _draw_forgetting(panel: Axes, groups: list[RunGroup], theme: Theme) -> None:
    (group,) = groups
    names = group.set_names
    for name, color in zip(names, theme.group_colors(len(names)), strict=True):
        curve = group.set_curve(name).since_start()
        _plot(panel, curve, color=color, theme=theme, marks_best=True, label=name)
    panel.axhline(0.0, color=theme.faint, linestyle=":", linewidth=1.2)
    panel.set(ylabel="nats per token")
    panel.legend()


def _draw_one_set(panel: Axes, groups: list[RunGroup], theme: Theme, *, name: str) -> None:
    for group, color in _with_colors(groups, theme):
        curve = group.set_curve(name)
        _plot(panel, curve, color=color, theme=theme, marks_best=True)
        if curve.mean:
            panel.axhline(curve.mean[0], color=color, linestyle=":", linewidth=1.0)
    panel.set(ylabel="nats per token")


def _draw_one_band(panel: Axes, groups: list[RunGroup], theme: Theme, *, band: int) -> None:
    seen: list[float] = []
    for group, color in _with_colors(groups, theme):
        curve = group.band_curve(band)
        _plot(panel, curve, color=color, theme=theme, marks_best=True)
        seen += _later(curve.mean)
    panel.set(ylabel="nats per token")
    _zoom(panel, seen)


def _draw_entropy(panel: Axes, groups: list[RunGroup], theme: Theme) -> None:
    for group, color in _with_colors(groups, theme):
        curve = group.step_curve("mean_entropy_nats")
        line: dict[str, Any] = {"color": color, "linestyle": _DASHED, "linewidth": 1.3}
        panel.plot(curve.epochs, smoothed(curve.mean), **line, label="mean")
        curve = group.step_curve("entropy_threshold_nats")
        if not all(map(math.isnan, curve.mean)):
            panel.plot(curve.epochs, smoothed(curve.mean), color=color, label="threshold")
    panel.set(ylabel="nats", ylim=(0, None))
    if len(groups) == 1:
        panel.legend()


def _draw_drop_rate(panel: Axes, groups: list[RunGroup], theme: Theme) -> None:
    for group, color in _with_colors(groups, theme):
        realised, asked = (group.step_curve(f"drop_rate_{kind}") for kind in ("realised", "asked"))
        line: dict[str, Any] = {"color": color, "alpha": 0.45, "linewidth": 1.0}
        panel.plot(realised.epochs, realised.mean, **line, label="realised")
        panel.plot(asked.epochs, asked.mean, color=color, linewidth=2.2, label="asked")
    panel.set(ylabel="share of targets", ylim=(0, None))
    panel.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
    if len(groups) == 1:
        panel.legend()


def _draw_speed(panel: Axes, groups: list[RunGroup], theme: Theme) -> None:
    _draw_one(panel, groups, theme, key="tokens_per_second")
    panel.set(ylabel="tokens / second", ylim=(0, None))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _draw_gradient_norm(panel: Axes, groups: list[RunGroup], theme: Theme) -> None:
    _draw_one(panel, groups, theme, key="grad_norm")
    panel.set(ylabel="norm", ylim=(0, None))


def _draw_one(panel: Axes, groups: list[RunGroup], theme: Theme, *, key: str) -> None:
    for group, color in _with_colors(groups, theme):
        curve = group.step_curve(key)
        if len(groups) == 1:
            panel.plot(curve.epochs, curve.mean, color=color, alpha=0.25, linewidth=0.9)
        panel.plot(curve.epochs, smoothed(curve.mean), color=color)


def _plot(
    panel: Axes, curve: Curve, *, color: str, theme: Theme, marks_best: bool, label: str = ""
) -> None:
    """The mean, a band from the lowest to the highest seed, a star at the best."""
    if not curve.epochs:
        return
    marker = "o" if len(curve.epochs) <= 40 else ""
    panel.plot(curve.epochs, curve.mean, color=color, marker=marker, label=label)
    panel.fill_between(curve.epochs, curve.low, curve.high, color=color, alpha=0.18, linewidth=0)
    if marks_best and curve.best:
        star: dict[str, Any] = {"marker": "*", "markersize": 13, "linestyle": "none", "zorder": 5}
        panel.plot(*curve.best, color=color, markeredgecolor=theme.background, **star)


def _later(values: list[float]) -> list[float]:
    """What comes after the steep beginning: the first sixth of a run."""
    return values[max(1, len(values) // 6) :]


def _zoom(panel: Axes, seen: list[float]) -> None:
    """Show what comes after the first fall, where that fall would flatten all the rest."""
    finite = [value for value in seen if math.isfinite(value)]
    if len(finite) < 3:
        return
    low, high = min(finite), max(finite)
    if panel.get_ylim()[1] - low > 1.6 * (high - low) > 0:
        panel.set_ylim(low - 0.08 * (high - low), high + 0.25 * (high - low))


def _with_colors(groups: list[RunGroup], theme: Theme) -> list[tuple[RunGroup, str]]:
    return list(zip(groups, theme.group_colors(len(groups)), strict=True))


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
