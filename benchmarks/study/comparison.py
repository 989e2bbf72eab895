"""Compares the finished runs of a study: measures by arm, and differences paired by seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from benchmarks.study.arm import Arm
from benchmarks.study.arms import ARM_OF
from benchmarks.study.jobs import BASE_ARM
from benchmarks.study.results import Row
from benchmarks.study.settings import TUNING_SEED
from training.reports.intervals import Interval, mean_interval

Measure = Callable[[Row], float]


def final_loss(row: Row) -> float:
    return row["curve"]["loss"][-1]


def best_loss(row: Row) -> float:
    """Of the evaluations after the first step; the base model itself does not count."""
    return min(row["curve"]["loss"][1:])


def best_epoch(row: Row) -> float:
    losses = row["curve"]["loss"][1:]
    return row["curve"]["epoch"][1:][losses.index(min(losses))]


def area(row: Row) -> float:
    """Mean loss over the epochs: the area under the curve by trapezoids, over its width."""
    epochs, losses = row["curve"]["epoch"], row["curve"]["loss"]
    total = sum(
        (later - earlier) * (before + after) / 2
        for (earlier, later), (before, after) in zip(
            pairwise(epochs), pairwise(losses), strict=True
        )
    )
    return total / (epochs[-1] - epochs[0])


def final_band(band: int) -> Measure:
    return lambda row: row["curve"]["bands"][-1][band]


def band_rise(band: int) -> Measure:
    """How far a band's loss has risen at the end above its own best."""
    return lambda row: (
        row["curve"]["bands"][-1][band] - min(losses[band] for losses in row["curve"]["bands"])
    )


def known(when: str, *path: str) -> Measure:
    """A number of the weights that were scored, `final` or `best`."""

    def measure(row: Row) -> float:
        value: Any = row[when]
        for key in path:
            value = value[key]
        return value

    return measure


@dataclass(frozen=True)
class ArmRuns:
    """The reported runs of an arm in one place of the grid, by seed."""

    arm: Arm
    chosen: dict[str, Any]
    rows: dict[int, Row]

    def mean(self, measure: Measure) -> Interval:
        return mean_interval([measure(row) for _, row in sorted(self.rows.items())])

    def minus(self, other: ArmRuns | None, measure: Measure) -> Interval | None:
        """Mean difference over the seeds that both have; None without one."""
        seeds = sorted(self.rows.keys() & other.rows.keys()) if other else []
        if other is None or not seeds:
            return None
        return mean_interval([measure(self.rows[s]) - measure(other.rows[s]) for s in seeds])


@dataclass(frozen=True)
class Place:
    """Everything of one model size and domain."""

    size: str
    domain: str
    base: ArmRuns | None
    """The base model itself, scored on the canaries of each seed."""
    arms: dict[str, ArmRuns]
    tuning: dict[str, list[Row]]
    """By arm, the runs that chose its setting."""

    def random_partner(self, name: str) -> ArmRuns | None:
        """Random dropout at the same place, rate and curriculum as an arm of EntroDrop."""
        own = self.arms[name]
        fixed = {**own.arm.fixed, **own.chosen}
        if fixed.get("regulariser") != "entrodrop":
            return None
        for other in self.arms.values():
            rates = {**other.arm.fixed, **other.chosen}
            if rates.get("regulariser") == "random_token_dropout" and all(
                rates.get(key) == fixed.get(key)
                for key in rates.keys() | fixed.keys()
                if key.startswith(("dropout.", "baseline."))
                and key not in ("dropout.side", "dropout.guidance")
            ):
                return other
        return None


def places_of(rows: Iterable[Row]) -> list[Place]:
    """The grid, in the order in which its runs came."""
    rows = list(rows)
    grid = dict.fromkeys((row["size"], row["domain"]) for row in rows)
    return [_place(rows, size, domain) for size, domain in grid]


def _place(rows: list[Row], size: str, domain: str) -> Place:
    own = [row for row in rows if (row["size"], row["domain"]) == (size, domain)]
    arms, tuning = {}, {}
    for arm in ARM_OF.values():
        of_arm = [row for row in own if row["arm"] == arm.name]
        tuning[arm.name] = [row for row in of_arm if row["seed"] == TUNING_SEED]
        groups: dict[str, dict[int, Row]] = {}
        for row in of_arm:
            if row["seed"] != TUNING_SEED:
                groups.setdefault(str(row["chosen"]), {})[row["seed"]] = row
        if groups:  # if a later tuning chose another setting, take the one with most seeds
            most = max(reversed(groups.values()), key=len)
            arms[arm.name] = ArmRuns(arm, next(iter(most.values()))["chosen"], most)
    # it has one set of weights, reported under `final`
    of_base = {row["seed"]: row | {"best": row["final"]} for row in own if row["arm"] == BASE_ARM}
    base = ArmRuns(Arm(BASE_ARM, "base model", {}), {}, of_base) if of_base else None
    return Place(size, domain, base, arms, {name: runs for name, runs in tuning.items() if runs})
