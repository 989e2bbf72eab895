"""What each arm of the second round gains, forgets and costs, over all places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.study.comparison import Place, best_epoch, best_loss, known
from benchmarks.study.results import Row
from benchmarks.study.tables import difference, markdown, number
from benchmarks.study.tradeoff import BASELINE, against, at_share, best_share, cost_of, general_loss
from training.reports.intervals import Interval

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


def summary_table(places: Mapping[str, Place], *, fewest: int) -> str:
    """What each arm gains, an arm a row and a place a column, by the gain in the first place.

    General text and compute are given as ranges over the places.

    Args:
        places: by the heads of their columns.
        fewest: arms that were run in fewer places are left out.
    """
    rows = [
        [
            label,
            *(difference(gain.domain) if gain else "" for gain in gains),
            _range([gain.general.mean for gain in gains if gain], "+z.2f"),
            _range([gain.compute for gain in gains if gain], ".1f"),
        ]
        for label, gains in _shown(places, fewest)
    ]
    return markdown(["best loss", *places, "general text", "compute"], rows)


def general_table(places: Mapping[str, Place], *, fewest: int) -> str:
    """As `summary_table`, of general text at an arm's best."""
    rows = [
        [label, *(difference(gain.general) if gain else "" for gain in gains)]
        for label, gains in _shown(places, fewest)
    ]
    return markdown(["general text", *places], rows)


def equal_compute_table(places: Mapping[str, Place], *, fewest: int) -> str:
    """As `summary_table`, by the evaluations that the compute of plain training's whole run allows.

    Of arms that an epoch costs more. Their curriculum and learning rate stay those of the longer
    run, so that planning for fewer epochs could only do better.
    """
    rows = {}
    for label, name in _names(places).items():
        found = [_within_compute(place, name) for place in places.values()]
        if len(found) - found.count(None) >= fewest:
            rows[label] = [difference(each) if each else "" for each in found]
    return markdown(["at equal compute", *places], [[label, *row] for label, row in rows.items()])


def _names(places: Mapping[str, Place]) -> dict[str, str]:
    """Of all arms but plain training, by their labels."""
    arms = {name: runs.arm.label for place in places.values() for name, runs in place.arms.items()}
    return {label: name for name, label in arms.items() if name != BASELINE}


def _within_compute(place: Place, name: str) -> Interval | None:
    """None where the arm was not run, or costs no more than plain training."""
    runs, plain = place.arms.get(name), place.arms[BASELINE]
    if runs is None or cost_of(runs) == 1.0:
        return None
    last = max(next(iter(plain.rows.values()))["curve"]["epoch"]) / cost_of(runs)

    def best_until(row: Row) -> float:
        curve = row["curve"]
        losses = zip(curve["epoch"], curve["loss"], strict=True)
        return min(loss for epoch, loss in losses if 0 < epoch <= last)

    return against(runs, best_until, plain, best_loss)


def places_table(places: Mapping[str, Place]) -> str:
    """Where plain training is best, and what it has forgotten by then: a place a row."""
    rows = []
    for title, place in places.items():
        plain = place.arms[BASELINE]
        epochs = max(next(iter(plain.rows.values()))["curve"]["epoch"])
        before = place.base.mean(general_loss) if place.base else None
        rows.append(
            [
                title,
                str(len(plain.rows)),
                number(plain.mean(best_loss)),
                f"{plain.mean(best_epoch).mean:.1f} of {epochs:.0f}",
                f"{before.mean:.2f}" if before else "",
                f"{plain.mean(general_loss).mean:.2f}",
            ]
        )
    head = ["place", "seeds", "plain training's best", "after epochs"]
    return markdown([*head, "general text before", "then"], rows)


def _range(numbers: Sequence[float], form: str) -> str:
    ends = (f"{each:{form}}" for each in (min(numbers), max(numbers)))
    lowest, highest = (end.replace("-", "−").replace("+0.00", "0.00") for end in ends)
    return lowest if lowest == highest else f"{lowest} to {highest}"


def _shown(places: Mapping[str, Place], fewest: int) -> list[tuple[str, list[Gain | None]]]:
    shown = [
        (label, gains)
        for label, gains in _rows(places).items()
        if len(gains) - gains.count(None) >= fewest
    ]
    return sorted(shown, key=lambda row: _mean_gain(row[1][:1]))


def _rows(places: Mapping[str, Place]) -> dict[str, list[Gain | None]]:
    rows = {
        label: [gain_of(place, name) for place in places.values()]
        for label, name in _names(places).items()
    }
    labels = {
        name: runs.arm.label for place in places.values() for name, runs in place.arms.items()
    }
    for name in _INTERPOLATED & labels.keys():
        label = f"{labels[name]}, interpolated with the base"
        rows[label] = [gain_of(place, name, on_the_way=True) for place in places.values()]
    return rows


def _mean_gain(gains: Sequence[Gain | None]) -> float:
    found = [gain.domain.mean for gain in gains if gain is not None]
    return sum(found) / len(found) if found else 0.0
