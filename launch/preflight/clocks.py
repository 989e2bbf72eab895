"""Check: clocks of the hosts against that of the first; comparing logs of hosts relies on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from launch.preflight.finding import Finding
from launch.preflight.setting import Context, Setting

_ROUNDS = 8
_MAX_SECONDS = 1.0


def measure(context: Context, *, now: Callable[[], float] = time.time) -> dict[str, float] | None:
    """How far this host's clock is ahead of rank 0's, by the fastest of some round trips.

    The other clock was read somewhere between request and reply: at the middle, give or take half
    of the round trip (Cristian's algorithm). One rank of each host asks, in turn.
    """
    rank, group = context.layout.rank, context.cpu_group
    leaders = [ranks[0] for ranks in context.setting.ranks_of_host.values()][1:]
    message = torch.zeros(1, dtype=torch.float64)
    if rank == 0:
        for leader in leaders:
            for _ in range(_ROUNDS):
                dist.recv(message, src=leader, group=group)
                dist.send(torch.tensor([now()], dtype=torch.float64), dst=leader, group=group)
        return {"ahead": 0.0, "give_or_take": 0.0}
    if rank not in leaders:
        return None
    best: dict[str, float] = {"ahead": 0.0, "give_or_take": float("inf")}
    for _ in range(_ROUNDS):
        asked_at, clock = now(), time.monotonic()
        dist.send(message, dst=0, group=group)
        dist.recv(message, src=0, group=group)
        half = (time.monotonic() - clock) / 2
        if half < best["give_or_take"]:
            best = {"ahead": asked_at + half - float(message), "give_or_take": half}
    return best


def judge(setting: Setting, measures: Mapping[int, Any]) -> list[Finding]:
    """Certainly more than a second off."""
    if setting.num_hosts == 1:
        return [Finding("skip", "one host")]
    asked = {rank: found for rank, found in measures.items() if found is not None}
    findings = [
        Finding(
            "warn",
            f"the clock of {setting.hosts[rank]} is {abs(found['ahead']):.1f} s "
            f"{'ahead of' if found['ahead'] > 0 else 'behind'} that of {setting.hosts[0]}",
            "let chrony or ntpd set it; it affects logs, not what is learnt",
            (rank,),
        )
        for rank, found in asked.items()
        if abs(found["ahead"]) - found["give_or_take"] > _MAX_SECONDS
    ]
    if findings:
        return findings
    widest = max(asked.values(), key=lambda found: abs(found["ahead"]))
    off, doubt = widest["ahead"] * 1e3, widest["give_or_take"] * 1e3
    return [Finding("pass", f"{off:+.1f} ms at most, known to ± {doubt:.1f} ms")]
