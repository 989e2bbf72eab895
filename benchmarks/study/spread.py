"""How varied an arm's dropped inputs are, against the gain in its final loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.study.comparison import ArmRuns, Place, final_loss
from training.config.dropout import Dropout
from training.entrodrop.mask import DropRates

_COLOURS = {"entrodrop": "C2", "random_token_dropout": "C1", "none": "C0"}
_NAMES = {"entrodrop": "by entropy", "random_token_dropout": "at random", "none": "none"}


def mask_bits(runs: ArmRuns) -> float | None:
    """Entropy of a token's mask at full strength, in bits, on average over tokens.

    Within a step EntroDrop draws with `max_rate` among the share `quantile` of tokens and, with
    full guidance, never among the rest; random dropout draws among all with the product. None for
    arms that drop no inputs, or that drop them by another curriculum or replacement.
    """
    setting = {**runs.arm.fixed, **runs.chosen}
    kind = setting["regulariser"]
    if kind == "none":
        return 0.0
    known = {"regulariser", "entropy.source", "dropout.side"}
    known |= {"dropout.where", "dropout.quantile", "dropout.max_rate", "dropout.guidance"}
    if setting.get("dropout.where") != "input" or setting.keys() - known:
        return None
    share = setting.get("dropout.quantile", Dropout.quantile)
    rate = setting.get("dropout.max_rate", Dropout.max_rate)
    guidance = setting.get("dropout.guidance", Dropout.guidance)
    if kind == "random_token_dropout":
        guidance = 0.0
    rates = DropRates(rate, q=share, guidance=guidance)
    return share * _bits(rates.low) + (1 - share) * _bits(rates.other)


def draw_spread(places: Sequence[Place], path: Path) -> None:
    """Final loss minus that of no regulariser over the entropy of masks, with 95% intervals."""
    shown = [place for place in places if "none" in place.arms]
    figure, axes = plt.subplots(
        1,
        max(len(shown), 1),
        figsize=(5.5 * max(len(shown), 1), 4.2),
        squeeze=False,
        layout="constrained",
    )
    for ax, place in zip(axes[0], shown, strict=False):
        for kind, name in _NAMES.items():
            arms = [runs for runs in place.arms.values() if runs.arm.fixed["regulariser"] == kind]
            points = [
                (bits, found)
                for runs in arms
                if (bits := mask_bits(runs)) is not None
                and (found := runs.minus(place.arms["none"], final_loss)) is not None
            ]
            if points:
                ax.errorbar(
                    [bits for bits, _ in points],
                    [found.mean for _, found in points],
                    yerr=[found.half or 0.0 for _, found in points],
                    fmt="o",
                    markersize=5,
                    capsize=2,
                    color=_COLOURS[kind],
                    label=name,
                )
        ax.set_title(f"{place.domain}, {place.size} parameters", fontsize=10)
        ax.set_xlabel("entropy of a token's mask at full strength, bits")
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8, frameon=False)
    axes[0][0].set_ylabel("final loss minus that of none, nats")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _bits(rate: float) -> float:
    if rate in (0.0, 1.0):
        return 0.0
    return -(rate * math.log2(rate) + (1 - rate) * math.log2(1 - rate))
