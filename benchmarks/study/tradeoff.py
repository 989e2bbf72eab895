"""The second round's table and picture: the best loss, and what the base knew at that point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.study.comparison import (
    ArmRuns,
    Measure,
    Place,
    best_epoch,
    best_loss,
    final_loss,
    known,
)
from benchmarks.study.tables import difference, markdown, number, setting_of
from training.reports.intervals import Interval, mean_interval

LEGEND = """\
`best` is the lowest loss of all evaluations, which is what stopping in time would keep; `general`
is the loss of general text at that point. `at share` are weights between the base and the best
ones: the share of the way with the lowest loss on the tuning slice, 1 for the best ones themselves.
Differences are to plain training stopped at its best. `cost` is the compute of an epoch beside
plain training's.
"""
BASELINE = "plain"
_INTERPOLATED = {BASELINE, "plain_fast"}
_DPI = 100


def general_loss(row: dict[str, Any]) -> float:
    """Of general text, by the best weights."""
    return known("best", "general_loss")(row)


def at_share(share: str, measure: str) -> Measure:
    """Of the weights that lie a share of the way from the base to the best ones."""
    return known("best", measure) if share == "1" else known("between", share, measure)


def best_share(place: Place, runs: ArmRuns) -> str:
    """The share with the lowest loss on the tuning slice, by the setting that the arm chose.

    1 where no others are scored, or not yet.
    """
    tuning = [
        row
        for row in place.tuning.get(runs.arm.name, ())
        if row["chosen"] == runs.chosen and "between" in row
    ]
    if not tuning:
        return "1"
    shares = ["1", *tuning[0]["between"]]
    return min(shares, key=lambda share: at_share(share, "domain_loss")(tuning[0]))


def cost_of(runs: ArmRuns) -> float:
    """Compute of an epoch; replayed tokens are computed, too."""
    return runs.arm.passes / (1 - float(runs.chosen.get("replay.share", 0.0)))


def tradeoff_table(place: Place) -> str:
    """Best losses and what is left of the base's knowledge, beside plain training's."""
    plain = place.arms[BASELINE]
    head = ["arm", "setting", "seeds", "best", "epoch of best", "best − plain"]
    head += ["general", "general − plain", "at share", "best − plain", "general", "final − plain"]
    rows = []
    for runs in place.arms.values():
        share = best_share(place, runs)
        between = at_share(share, "domain_loss")
        rows.append(
            [
                runs.arm.label,
                setting_of(runs),
                str(len(runs.rows)),
                number(runs.mean(best_loss)),
                number(runs.mean(best_epoch), digits=1),
                "" if runs is plain else difference(runs.minus(plain, best_loss)),
                number(runs.mean(general_loss)),
                "" if runs is plain else difference(runs.minus(plain, general_loss)),
                share,
                difference(_against(runs, between, plain, known("best", "domain_loss"))),
                number(runs.mean(at_share(share, "general_loss"))),
                "" if runs is plain else difference(runs.minus(plain, final_loss)),
                f"{cost_of(runs):.2f}",
            ]
        )
    return markdown([*head, "cost"], rows)


def summary_table(places: Sequence[Place]) -> str:
    """An arm a row, the lowest best losses first: what it gains, forgets and costs, by place.

    Of plain training the weights on their way from the base are rows, too. `compute` is what an arm
    spends until its best, beside plain training until its own.
    """
    arms = {name: runs.arm.label for place in places for name, runs in place.arms.items()}
    rows = {
        label: [_gain(place, name) for place in places]
        for name, label in arms.items()
        if name != BASELINE
    }
    for name in _INTERPOLATED & arms.keys():
        label = f"{arms[name]}, interpolated with the base"
        rows[label] = [_gain(place, name, on_the_way=True) for place in places]
    head = ["arm"]
    for place in places:
        head += [f"{place.domain}, {place.size}: best", "general", "compute"]
    lines = [
        [label, *(cell for gain in gains for cell in _cells(gain))]
        for label, gains in sorted(rows.items(), key=lambda row: _mean_gain(row[1]))
    ]
    return markdown(head, lines)


class _Gain(NamedTuple):
    domain: Interval
    general: Interval
    compute: float


def _gain(place: Place, name: str, *, on_the_way: bool = False) -> _Gain | None:
    """Beside plain training at its best; None where the arm was not run."""
    runs, plain = place.arms.get(name), place.arms[BASELINE]
    if runs is None:
        return None
    share = best_share(place, runs) if on_the_way else "1"
    domain, general = (
        _against(runs, at_share(share, measure), plain, known("best", measure))
        for measure in ("domain_loss", "general_loss")
    )
    if domain is None or general is None:
        return None
    epochs = [each.mean(best_epoch).mean for each in (runs, plain)]
    return _Gain(domain, general, cost_of(runs) * epochs[0] / epochs[1])


def _cells(gain: _Gain | None) -> list[str]:
    if gain is None:
        return ["", "", ""]
    return [difference(gain.domain), difference(gain.general), f"{gain.compute:.1f}"]


def _mean_gain(gains: Sequence[_Gain | None]) -> float:
    found = [gain.domain.mean for gain in gains if gain is not None]
    return sum(found) / len(found) if found else 0.0


def draw_tradeoff(places: Sequence[Place], path: Path) -> None:
    """A point for each arm: further down is a better domain, further left is less forgotten."""
    numbers = {name: n for n, name in enumerate(_names_by_gain(places), start=1)}
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


def _names_by_gain(places: Sequence[Place]) -> list[str]:
    """All arms, the lowest best losses first."""
    names = dict.fromkeys(name for place in places for name in place.arms)
    return sorted(names, key=lambda name: _mean_gain([_gain(place, name) for place in places]))


def _over_seeds(
    runs: ArmRuns, plain: ArmRuns, measure: Callable[[dict[str, Any]], float]
) -> Interval:
    found = runs.minus(plain, measure)
    return Interval(0.0, None) if found is None else found


def _against(runs: ArmRuns, measure: Measure, plain: ArmRuns, of_plain: Measure) -> Interval | None:
    """As `ArmRuns.minus`, with a measure of each."""
    seeds = sorted(runs.rows.keys() & plain.rows.keys())
    if not seeds:
        return None
    return mean_interval([measure(runs.rows[s]) - of_plain(plain.rows[s]) for s in seeds])
