"""Runs that differ only by their seed as one group, and its curves: a mean with a band."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from statistics import fmean
from typing import Any

from training.config.renamed import LIST, with_list
from training.reports.curves import RunCurves

# Keys that change neither what is learnt nor what is measured.
_SETTINGS_LEFT_OUT = ("run_dir", "seed", "resume", "checkpoint", "watchdog")
_Series = tuple[list[float], list[float]]


@dataclass(frozen=True)
class Curve:
    """Over the seeds of a group, at each epoch that all of them have; NaN leaves a gap."""

    epochs: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]

    @property
    def best(self) -> tuple[float, float] | None:
        """Epoch and mean where the mean is lowest."""
        points = zip(self.mean, self.epochs, strict=True)
        measured = [(value, epoch) for value, epoch in points if math.isfinite(value)]
        if not measured:
            return None
        value, epoch = min(measured)
        return epoch, value

    def since_start(self) -> Curve:
        """The same minus its first mean."""
        first = self.mean[0] if self.mean else 0.0
        mean, low, high = (
            [value - first for value in values] for values in (self.mean, self.low, self.high)
        )
        return Curve(self.epochs, mean, low, high)


@dataclass(frozen=True)
class RunGroup:
    """Runs of one recipe under several seeds; often a single run."""

    name: str
    runs: tuple[RunCurves, ...]
    settings: dict[str, Any]
    """The recipe by dotted keys, without what differs between runs of a group, and the fingerprints
    of their samples: `pack`, and `pack_of_<name>` of a held-out set."""

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """One per run."""
        return tuple(run.seed for run in self.runs)

    @property
    def num_seeds(self) -> int:
        """A seed that was run twice counts once."""
        return len(set(self.seeds))

    @property
    def bands(self) -> list[dict[str, Any]]:
        """Number and edges of the entropy bands of its first run, which has its own."""
        return self.runs[0].bands

    @property
    def set_names(self) -> list[str]:
        """Of the held-out sets of its first run."""
        return self.runs[0].set_names

    def step_curve(self, key: str) -> Curve:
        """A key of the step rows."""
        return self._curve(lambda run: run.step_series(key))

    def heldout_curve(self) -> Curve:
        """Held-out loss."""
        return self._curve(RunCurves.heldout_series)

    def band_curve(self, band: int) -> Curve:
        """Held-out loss of one band, counted from 1."""
        return self._curve(lambda run: run.band_series(band))

    def set_curve(self, name: str) -> Curve:
        """Loss of one held-out set."""
        return self._curve(lambda run: run.set_series(name))

    def mean(self, measure: Callable[[RunCurves], float | None]) -> float | None:
        """Of a number of its runs, those that have it."""
        values = [value for run in self.runs if (value := measure(run)) is not None]
        return fmean(values) if values else None

    def _curve(self, series: Callable[[RunCurves], _Series]) -> Curve:
        found = [dict(zip(*series(run), strict=True)) for run in self.runs]
        epochs = [epoch for epoch in found[0] if all(epoch in values for values in found)]
        columns = [[values[epoch] for values in found] for epoch in epochs]
        return Curve(
            epochs=epochs,
            mean=[sum(column) / len(column) for column in columns],
            low=[
                min(column) if all(map(math.isfinite, column)) else math.nan for column in columns
            ],
            high=[
                max(column) if all(map(math.isfinite, column)) else math.nan for column in columns
            ],
        )


def group_runs(runs: list[RunCurves]) -> list[RunGroup]:
    """Group runs that differ only by seed, with the same samples, in their order.

    A run without `recipe.resolved.yaml` stays alone.
    """
    members: dict[str, list[RunCurves]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for run in runs:
        flat = flat_settings(run.recipe)
        # a corpus rebuilt at the same path is a different one
        flat |= {key: value for key, value in run.facts.items() if key.startswith("pack")}
        key = repr(sorted(flat.items())) if flat else f"alone: {run.name}"
        members.setdefault(key, []).append(run)
        settings[key] = flat
    names = _names(members, settings)
    return [
        RunGroup(names[key], tuple(sorted(found, key=lambda run: run.seed or 0)), settings[key])
        for key, found in members.items()
    ]


def flat_settings(recipe: dict[str, Any]) -> dict[str, Any]:
    """What is learnt and measured, by dotted keys: `{"optimizer.lr": 1e-3}`."""
    named = with_list(recipe)
    if LIST in named:
        named["regulariser"] = "+".join(map(str, named.pop(LIST)))
    kept = {key: value for key, value in named.items() if key not in _SETTINGS_LEFT_OUT}
    flat = dict(_leaves(kept, prefix=""))
    flat.pop("train.stop_after_steps", None)
    flat.pop("data.verify", None)
    return flat


def differing_settings(groups: list[RunGroup]) -> dict[str, list[Any]]:
    """Keys whose values differ between groups, with the value of each group."""
    keys = dict.fromkeys(key for group in groups for key in group.settings)
    values = {key: [group.settings.get(key) for group in groups] for key in keys}
    return {key: found for key, found in values.items() if any(v != found[0] for v in found)}


def _leaves(tree: dict[str, Any], *, prefix: str) -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves += _leaves(value, prefix=f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", value))
    return leaves


def _names(
    members: dict[str, list[RunCurves]], settings: dict[str, dict[str, Any]]
) -> dict[str, str]:
    """A run's own name; for several the prefix that their names share, or what differs."""
    names = {}
    for key, runs in members.items():
        names[key] = runs[0].name if len(runs) == 1 else _shared_name([run.name for run in runs])
    described = [RunGroup("", (), found) for found in settings.values()]
    differing = differing_settings(described)
    names = _without_shared_key(names, {key.rpartition(".")[2] for key in differing})
    taken = list(names.values())
    if len(members) == 1 or all(len(name) > 1 and taken.count(name) == 1 for name in taken):
        return {key: name or "all runs" for key, name in names.items()}
    labels = [
        ", ".join(f"{name.rpartition('.')[2]}={values[i]}" for name, values in differing.items())
        for i in range(len(described))
    ]
    return {
        key: label if label and len(label) <= 60 else f"group {i}"
        for i, (key, label) in enumerate(zip(members, labels, strict=True), start=1)
    }


def _shared_name(names: list[str]) -> str:
    """Example: of none-seed1 and none-seed2 it is "none", of a-1,seed-1 and a-1,seed-2 "a-1"."""
    columns = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    shared = "".join(letters[0] for letters in columns)
    return re.sub(r"[-_.,/ ]*((?<![a-z])(seed|s))?[-_=]?\d*$", "", shared) or shared


def _without_shared_key(names: dict[str, str], differing: set[str]) -> dict[str, str]:
    """Example: regulariser-none and regulariser-entrodrop are "none" and "entrodrop".

    Numbers keep their key: 0.1 alone says nothing.
    """
    parts = {key: name.partition("-") for key, name in names.items()}
    starts = {start for start, _, _ in parts.values()}
    values = [value for _, _, value in parts.values()]
    if len(starts) == 1 and starts <= differing and all(v[:1].isalpha() for v in values):
        return {key: value for key, (_, _, value) in parts.items()}
    return names
