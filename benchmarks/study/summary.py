"""What each arm of the second round gains, forgets and costs, over all places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.study.comparison import Place, best_epoch, known
from benchmarks.study.tables import difference, markdown
from benchmarks.study.tradeoff import BASELINE, against, at_share, best_share, cost_of
from training.reports.intervals import Interval

_FEWEST_PLACES = 3
_INTERPOLATED = {BASELINE, "plain_fast"}
"""Of these the weights on their way from the base are rows, too."""


class Gain(NamedTuple):
    """Beside plain training at its best, in nats a token."""

    domain: Interval
    general: Interval
    compute: float
    """Until an arm's best, beside plain training's until its own."""


def gain_of(place: Place, name: str, *, on_the_way: bool = False) -> Gain | None:
    """What an arm gains in a place; None where it was not run.

    Args:
        on_the_way: by the weights between the base and its best ones, where they were scored.
    """
    runs, plain = place.arms.get(name), place.arms[BASELINE]
    if runs is None:
        return None
    if on_the_way and not any("between" in row for row in place.tuning.get(name, ())):
        return None
    share = best_share(place, runs) if on_the_way else "1"
    domain, general = (
        against(runs, at_share(share, measure), plain, known("best", measure))
        for measure in ("domain_loss", "general_loss")
    )
    if domain is None or general is None:
        return None
    epochs = [each.mean(best_epoch).mean for each in (runs, plain)]
    return Gain(domain, general, cost_of(runs) * epochs[0] / epochs[1])


def names_by_gain(places: Sequence[Place]) -> list[str]:
    """All arms, the lowest best losses first."""
    names = dict.fromkeys(name for place in places for name in place.arms)
    return sorted(names, key=lambda name: _mean_gain([gain_of(place, name) for place in places]))


def summary_tables(places: Mapping[str, Place]) -> str:
    """Two tables, of the best loss and of general text: an arm a row, a place a column.

    Args:
        places: by the heads of their columns. Arms that were run in three of them are shown,
            the lowest best losses first.
    """
    shown = [
        (label, gains)
        for label, gains in _rows(places).items()
        if len(gains) - gains.count(None) >= _FEWEST_PLACES
    ]
    shown.sort(key=lambda row: _mean_gain(row[1]))
    best = [
        [label, *(_cell(gain and gain.domain) for gain in gains), _range(gains)]
        for label, gains in shown
    ]
    general = [[label, *(_cell(gain and gain.general) for gain in gains)] for label, gains in shown]
    return "\n".join(
        [
            markdown(["best loss", *places, "compute"], best),
            markdown(["general text", *places], general),
        ]
    )


def _cell(gain: Interval | None) -> str:
    return difference(gain) if gain else ""


def _range(gains: Sequence[Gain | None]) -> str:
    numbers = [gain.compute for gain in gains if gain]
    lowest, highest = f"{min(numbers):.1f}", f"{max(numbers):.1f}"
    return lowest if lowest == highest else f"{lowest} to {highest}"


def _rows(places: Mapping[str, Place]) -> dict[str, list[Gain | None]]:
    arms = {name: runs.arm.label for place in places.values() for name, runs in place.arms.items()}
    rows = {
        label: [gain_of(place, name) for place in places.values()]
        for name, label in arms.items()
        if name != BASELINE
    }
    for name in _INTERPOLATED & arms.keys():
        label = f"{arms[name]}, interpolated with the base"
        rows[label] = [gain_of(place, name, on_the_way=True) for place in places.values()]
    return rows


def _mean_gain(gains: Sequence[Gain | None]) -> float:
    found = [gain.domain.mean for gain in gains if gain is not None]
    return sum(found) / len(found) if found else 0.0
