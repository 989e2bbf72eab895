"""What a check found, how bad it is, what to do, and on which ranks and hosts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, TypeVar

T = TypeVar("T")
Verdict = Literal["pass", "skip", "warn", "fail"]
_BY_WEIGHT: tuple[Verdict, ...] = ("skip", "pass", "warn", "fail")
_MAX_HOSTS_NAMED = 8


@dataclass(frozen=True)
class Finding:
    """One result of a check."""

    verdict: Verdict
    found: str
    todo: str = ""
    """What to do about it; nothing for a pass."""
    ranks: tuple[int, ...] = ()
    """The ranks concerned; none means all together."""


def worst(findings: Iterable[Finding]) -> Verdict:
    """fail before warn before pass; skip when there is nothing else."""
    return max((finding.verdict for finding in findings), key=_BY_WEIGHT.index, default="skip")


def ranks_by_value(values: Mapping[int, T]) -> list[tuple[T, tuple[int, ...]]]:
    """Equal values with the ranks that have them, the most frequent first."""
    groups: dict[T, list[int]] = {}
    for rank in sorted(values):
        groups.setdefault(values[rank], []).append(rank)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [(value, tuple(ranks)) for value, ranks in ordered]


def first_of_hosts(values: Mapping[int, T], hosts: Sequence[str]) -> dict[int, T]:
    """The value of the lowest rank of each host, for values that a host's ranks share."""
    chosen: dict[str, int] = {}
    for rank in sorted(values):
        chosen.setdefault(hosts[rank], rank)
    return {rank: values[rank] for rank in chosen.values()}


def name_ranks(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """Example: "rank 3 on h1", "ranks 0-3, 5 on h1; ranks 8-15 on h2"."""
    by_host: dict[str, list[int]] = {}
    for rank in sorted(ranks):
        by_host.setdefault(hosts[rank], []).append(rank)
    named = [
        f"rank{'s' if len(own) > 1 else ''} {_ranges(own)} on {host}"
        for host, own in list(by_host.items())[:_MAX_HOSTS_NAMED]
    ]
    more = len(by_host) - _MAX_HOSTS_NAMED
    return "; ".join([*named, *([f"and {more} more hosts"] if more > 0 else [])])


def name_hosts(ranks: Iterable[int], hosts: Sequence[str]) -> str:
    """The hosts of some ranks, once each."""
    names = list(dict.fromkeys(hosts[rank] for rank in sorted(ranks)))
    more = len(names) - _MAX_HOSTS_NAMED
    shown = ", ".join(names[:_MAX_HOSTS_NAMED])
    return f"{shown} and {more} more" if more > 0 else shown


def _ranges(numbers: Sequence[int]) -> str:
    """Example: 0 1 2 5 is "0-2, 5"."""
    parts = []
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        own = [number for _, number in run]
        parts.append(f"{own[0]}-{own[-1]}" if len(own) > 1 else f"{own[0]}")
    return ", ".join(parts)
