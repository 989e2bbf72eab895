"""The pictures of a study: losses over epochs, by band, and differences to no regulariser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from benchmarks.study.comparison import ArmRuns, Place, best_loss, final_loss, known
from benchmarks.study.results import Row

_SHOWN = ("none", "random_input", "entrodrop_input", "high_input", "hidden_dropout", "weight_decay")
_OF_BANDS = ("none", "random_input", "entrodrop_input")
_DPI = 100


def draw_curves(places: Sequence[Place], path: Path) -> None:
    """Held-out loss over epochs, the mean over seeds with the range between them."""
    figure, axes = plt.subplots(
        1, len(places), figsize=(5.5 * len(places), 4.2), squeeze=False, layout="constrained"
    )
    for ax, place in zip(axes[0], places, strict=True):
        for number, name in enumerate(_SHOWN):
            if name in place.arms:
                _curve(ax, place.arms[name], f"C{number}")
        _finish(ax, f"{place.domain}, {place.size} parameters")
        ax.legend(fontsize=8, frameon=False)
    axes[0][0].set_ylabel("held-out loss, nats a token")
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


def draw_bands(places: Sequence[Place], path: Path) -> None:
    """Change of the loss since before the first step, a panel for each band."""
    shown = [place for place in places if "none" in place.arms]
    num_bands = max(len(_bands(place.arms["none"])[0]) for place in shown)
    figure, axes = plt.subplots(
        len(shown),
        num_bands,
        figsize=(3.2 * num_bands, 3.2 * len(shown)),
        squeeze=False,
        layout="constrained",
        sharex=True,
    )
    for row, place in zip(axes, shown, strict=True):
        for band, ax in enumerate(row):
            for number, name in enumerate(_OF_BANDS):
                if name in place.arms:
                    runs = place.arms[name]
                    losses = _bands(runs)[:, band]
                    ax.plot(_epochs(runs), losses, color=f"C{number}", label=runs.arm.label)
            ends = ("lowest", *[""] * (num_bands - 2), "highest")[band]
            _finish(ax, f"{place.domain}, {place.size}: band {band + 1} {ends}".strip())
        row[0].set_ylabel("held-out loss, nats")
    axes[0][0].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


def draw_differences(places: Sequence[Place], path: Path) -> None:
    """Final and best loss minus that of no regulariser, paired by seed, with 95% intervals."""
    shown = [place for place in places if "none" in place.arms and len(place.arms) > 1]
    tallest = max((len(place.arms) for place in shown), default=1)
    figure, axes = plt.subplots(
        1,
        max(len(shown), 1),
        figsize=(6.5 * max(len(shown), 1), 0.34 * tallest + 1.4),
        squeeze=False,
        layout="constrained",
    )
    for ax, place in zip(axes[0], shown, strict=False):
        arms = [runs for name, runs in place.arms.items() if name != "none"][::-1]
        for measure, label, color, shift in (
            (final_loss, "final", "C0", 0.12),
            (best_loss, "best", "C1", -0.12),
        ):
            found = [runs.minus(place.arms["none"], measure) for runs in arms]
            ax.errorbar(
                [interval.mean if interval else np.nan for interval in found],
                np.arange(len(arms)) + shift,
                xerr=[(interval.half or 0.0) if interval else 0.0 for interval in found],
                fmt="o",
                markersize=4,
                capsize=2,
                color=color,
                label=label,
            )
        ax.axvline(0.0, color="0.5", linewidth=0.8)
        ax.set_yticks(range(len(arms)), [runs.arm.label for runs in arms], fontsize=8)
        ax.set_xlabel("loss minus that of none, nats; left is better")
        ax.set_title(f"{place.domain}, {place.size} parameters", fontsize=10)
        ax.grid(axis="x", alpha=0.3)
        ax.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


def draw_knowledge(places: Sequence[Place], path: Path) -> None:
    """Loss on general text and exposure of canaries at the end, with 95% intervals."""
    tallest = max(len(place.arms) for place in places)
    figure, axes = plt.subplots(
        len(places),
        2,
        figsize=(11, (0.3 * tallest + 1.4) * len(places)),
        squeeze=False,
        layout="constrained",
    )
    measures = (
        ("loss of general text at the end, nats (forgetting)", known("final", "general_loss")),
        ("exposure of canaries, bits", known("final", "canaries", "exposure_bits")),
    )
    for row, place in zip(axes, places, strict=True):
        arms = [*([place.base] if place.base else []), *place.arms.values()][::-1]
        for ax, (label, measure) in zip(row, measures, strict=True):
            found = [runs.mean(measure) for runs in arms]
            ax.errorbar(
                [interval.mean for interval in found],
                range(len(arms)),
                xerr=[interval.half or 0.0 for interval in found],
                fmt="o",
                markersize=4,
                capsize=2,
            )
            ax.set_yticks(range(len(arms)), [runs.arm.label for runs in arms], fontsize=8)
            ax.set_xlabel(f"{label}; left is better")
            ax.set_title(f"{place.domain}, {place.size} parameters", fontsize=10)
            ax.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


def _curve(ax: Axes, runs: ArmRuns, color: str) -> None:
    epochs = _epochs(runs)
    losses = np.array([_at(epochs, row, row["curve"]["loss"]) for row in runs.rows.values()])
    label = f"{runs.arm.label} ({len(losses)} seeds)"
    ax.plot(epochs, losses.mean(0), color=color, label=label)
    ax.fill_between(epochs, losses.min(0), losses.max(0), color=color, alpha=0.15, lw=0)


def _bands(runs: ArmRuns) -> np.ndarray:
    """`[evaluations, bands]`, the mean over seeds."""
    bands = [np.array(row["curve"]["bands"]).T for row in runs.rows.values()]
    epochs = _epochs(runs)
    means = [
        np.mean([_at(epochs, row, b) for row, b in zip(runs.rows.values(), losses, strict=True)], 0)
        for losses in zip(*bands, strict=True)
    ]
    return np.array(means).T


def _epochs(runs: ArmRuns) -> np.ndarray:
    """Where means are taken: slices, and so evaluations, differ by a sample or two."""
    curves = [row["curve"]["epoch"] for row in runs.rows.values()]
    return np.linspace(0.0, min(epochs[-1] for epochs in curves), len(curves[0]))


def _at(epochs: np.ndarray, row: Row, losses: Sequence[float]) -> np.ndarray:
    """A curve of a run at these epochs, by straight lines between its evaluations."""
    return np.interp(epochs, row["curve"]["epoch"], losses)


def _finish(ax: Axes, title: str) -> None:
    ax.set_title(title, fontsize=10)
    ax.set_xlabel("epochs over the slice")
    ax.grid(alpha=0.3)
