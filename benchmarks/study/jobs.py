"""The runs of a study, which can start now, and which settings the finished ones chose."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.study.arm import Arm, overrides_of, settings_tried
from benchmarks.study.arms import ARM_OF
from benchmarks.study.results import Row
from benchmarks.study.settings import TUNING_SEED, Setting

BASE_ARM = "base"
"""The base model itself, scored and not trained."""


@dataclass(frozen=True)
class Job:
    """One run. Its key is unique in a study, so that none is run twice."""

    size: str
    domain: str
    arm: str
    seed: int
    chosen: tuple[tuple[str, Any], ...]
    """The setting of this run, one of the arm's tries."""

    @property
    def key(self) -> str:
        setting = ",".join(f"{key}={value:g}" for key, value in self.chosen)
        return "/".join([self.size, self.domain, self.arm, setting or "-", str(self.seed)])

    @property
    def folder_name(self) -> str:
        digest = hashlib.sha256(self.key.encode()).hexdigest()[:8]
        return f"{self.size}-{self.domain}-{self.arm}-{self.seed}-{digest}"

    def overrides(self) -> dict[str, Any]:
        return overrides_of(ARM_OF[self.arm], dict(self.chosen))

    def as_row(self) -> Row:
        """The part of a results line that describes the run, before what was measured."""
        return {
            "key": self.key,
            "size": self.size,
            "domain": self.domain,
            "arm": self.arm,
            "seed": self.seed,
            "chosen": dict(self.chosen),
        }


def startable(setting: Setting, rows: Iterable[Row], *, arms: Iterable[Arm]) -> list[Job]:
    """Unfinished runs whose settings are known by now, in the order to start them."""
    rows, arms = list(rows), list(arms)
    done = {row["key"] for row in rows}
    found = [
        job
        for size in setting.sizes
        for number in sorted({arm.round for arm in arms})
        for domain in setting.domains
        for job in _of_round(setting, rows, size.name, domain, arms=arms, number=number)
    ]
    return [job for job in dict.fromkeys(found) if job.key not in done]


def count_jobs(setting: Setting, *, arms: Iterable[Arm]) -> int:
    """All runs of a study, with those that are not known yet."""
    of_arms = sum(num_tuning_runs(setting, arm) + len(setting.seeds) for arm in arms)
    return len(setting.sizes) * len(setting.domains) * (of_arms + len(setting.seeds))


def refuse_untuned(setting: Setting, rows: Iterable[Row], *, arms: Iterable[Arm]) -> None:
    """Arms that reuse a setting wait for the tuned arm, forever if it is not run.

    Raises:
        ValueError: naming arms that are neither asked for nor tuned already.
    """
    rows, arms = list(rows), list(arms)
    names = {arm.name for arm in arms}
    for arm in arms:
        missing = [
            name
            for name in arm.like
            if name not in names
            and any(
                choose(setting, rows, size.name, domain, ARM_OF[name]) is None
                for size in setting.sizes
                for domain in setting.domains
            )
        ]
        if missing:
            raise ValueError(
                f"--arms {arm.name}: it uses the setting of {' and '.join(missing)}, which have "
                "none yet; add them too"
            )


def num_tuning_runs(setting: Setting, arm: Arm) -> int:
    """On the tuning slice. A single try needs no choice, but a share of the base is one, too."""
    num_tries = len(settings_tried(arm, num=setting.tries_of_arm))
    return max(num_tries, 1) if num_tries > 1 or setting.base_shares else 0


def choose(setting: Setting, rows: Iterable[Row], size: str, domain: str, arm: Arm) -> Any:
    """The setting of an arm with the least held-out loss on the tuning slice.

    Returns:
        None while a run that decides it is missing.
    """
    rows = list(rows)
    candidates = _candidates(setting, rows, size, domain, arm)
    if candidates is None or len(candidates) == 1:
        return candidates and candidates[0]
    losses = {
        json.dumps(row["chosen"], sort_keys=True): _loss(setting, row)
        for row in rows
        if (row["size"], row["domain"], row["arm"], row["seed"])
        == (size, domain, arm.name, TUNING_SEED)
    }
    names = [json.dumps(one, sort_keys=True) for one in candidates]
    if not all(name in losses for name in names):
        return None
    return min(zip(names, candidates, strict=True), key=lambda pair: losses[pair[0]])[1]


def _candidates(
    setting: Setting, rows: list[Row], size: str, domain: str, arm: Arm
) -> list[dict[str, Any]] | None:
    """Each of the arm's tries, beside what the arms that it is like have chosen."""
    shared: dict[str, Any] = {}
    for name in arm.like:
        part = choose(setting, rows, size, domain, ARM_OF[name])
        if part is None:
            return None
        shared |= part
    tried = settings_tried(arm, num=setting.tries_of_arm)
    return [shared | dict(one) for one in tried] or [shared]


def _loss(setting: Setting, row: Row) -> float:
    if setting.tune_by == "best":
        return float(min(row["curve"]["loss"][1:]))
    return float(row["final"]["domain_loss"])


def _of_round(
    setting: Setting, rows: list[Row], size: str, domain: str, *, arms: list[Arm], number: int
) -> Iterator[Job]:
    if number == 0:
        for seed in setting.seeds:  # each has canaries of its own
            yield Job(size, domain, BASE_ARM, seed, ())
    own = [arm for arm in arms if arm.round == number]
    for arm in own:
        candidates = _candidates(setting, rows, size, domain, arm) or []
        for one in candidates[: num_tuning_runs(setting, arm)]:
            yield Job(size, domain, arm.name, TUNING_SEED, tuple(one.items()))
    # one seed of all arms before the next seed, so that a study cut short compares all arms
    for seed in setting.seeds:
        for arm in own:
            chosen = choose(setting, rows, size, domain, arm)
            is_spared = arm.spared_by is not None and chosen == choose(
                setting, rows, size, domain, ARM_OF[arm.spared_by]
            )
            if chosen is not None and not is_spared:
                yield Job(size, domain, arm.name, seed, tuple(chosen.items()))
