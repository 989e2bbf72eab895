"""The second round's picture: each arm by its best loss and by what the base knew at that point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.study.comparison import ArmRuns, Place, best_loss
from benchmarks.study.summary import names_by_gain
from benchmarks.study.tradeoff import BASELINE, general_loss
from training.reports.intervals import Interval

_DPI = 100


def draw_tradeoff(places: Sequence[Place], path: Path) -> None:
    """A point for each arm: further down is a better domain, further left is less forgotten."""
    numbers = {name: n for n, name in enumerate(names_by_gain(places), start=1)}
    colours = plt.get_cmap("tab20")
    figure, axes = plt.subplots(
        1, len(places), figsize=(5 * len(places) + 4, 5.5), squeeze=False, layout="constrained"
    )
    for ax, place in zip(axes[0], places, strict=True):
        plain = place.arms[BASELINE]
        for name, runs in place.arms.items():
            domain, general = (
                _over_seeds(runs, plain, measure) for measure in (best_loss, general_loss)
            )
            ax.errorbar(
                general.mean,
                domain.mean,
                xerr=general.half,
                yerr=domain.half,
                fmt="o",
                color=colours((numbers[name] - 1) % 20),
                elinewidth=0.6,
                label=f"{numbers[name]}  {runs.arm.label}",
            )
            ax.annotate(
                str(numbers[name]),
                (general.mean, domain.mean),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=8,
            )
        ax.axhline(0, color="0.8", linewidth=0.8)
        ax.axvline(0, color="0.8", linewidth=0.8)
        ax.set_xlabel("general text at the best − plain's, nats a token")
        ax.set_title(f"{place.domain}, {place.size} parameters", fontsize=10)
    axes[0][0].set_ylabel("best held-out loss − plain's, nats a token")
    named = {
        label: handle
        for ax in axes[0]
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    order = sorted(named, key=lambda label: int(label.split()[0]))
    figure.legend([named[label] for label in order], order, loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


def _over_seeds(
    runs: ArmRuns, plain: ArmRuns, measure: Callable[[dict[str, Any]], float]
) -> Interval:
    found = runs.minus(plain, measure)
    return Interval(0.0, None) if found is None else found
