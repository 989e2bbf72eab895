"""Check: bandwidth of every pair of hosts, in rounds in which all hosts are paired."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from launch.preflight.bandwidth import meet_all, num_bytes, wait_for_device
from launch.preflight.finding import Finding
from launch.preflight.formatting import count
from launch.preflight.setting import Context, Setting

_MAX_ROUNDS = 32
"""Beyond 33 hosts each meets 32 others, spread evenly: the check stays within a minute."""
_NUM_TIMED = 5
"""The fastest counts: a link is as fast as it can be, processes are late now and then."""
_SLOW_FRAC = 1 / 2


def tournament(num_hosts: int) -> list[list[tuple[int, int]]]:
    """Rounds of pairs, every host once in a round at most, until all pairs have met.

    Example of 4: [(0, 3), (1, 2)], [(3, 2), (0, 1)], [(2, 1), (3, 0)]. With an odd number one host
    sits out in each round.
    """
    seats: list[int | None] = [*range(num_hosts), *([None] if num_hosts % 2 else [])]
    rounds = []
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        facing = zip(seats[:half], reversed(seats[half:]), strict=True)
        rounds.append([(a, b) for a, b in facing if a is not None and b is not None])
        # the first stays, the others move on by one
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return rounds


def chosen_rounds(num_hosts: int) -> list[list[tuple[int, int]]]:
    """All rounds, or as many as there is time for."""
    rounds = tournament(num_hosts)
    if len(rounds) <= _MAX_ROUNDS:
        return rounds
    return [rounds[i * len(rounds) // _MAX_ROUNDS] for i in range(_MAX_ROUNDS)]


def measure(context: Context) -> list[list[Any]]:
    """Gbit/s that this rank sent, while receiving as much, with its counterpart on each host.

    Two ranks that exchange whole buffers send what an all-reduce between them would.
    """
    hosts = list(context.setting.ranks_of_host.items())
    if len(hosts) == 1:
        return []
    rank, device = context.layout.rank, context.layout.device
    own_host, own_lane = next(
        (number, ranks.index(rank)) for number, (_, ranks) in enumerate(hosts) if rank in ranks
    )
    size = num_bytes(context) // 4
    sent, received = torch.ones(size, device=device), torch.empty(size, device=device)
    found = []
    for pairs in chosen_rounds(len(hosts)):
        other = next((a + b - own_host for a, b in pairs if own_host in (a, b)), None)
        meet_all(context)
        if other is None or own_lane >= len(hosts[other][1]):
            continue
        peer = hosts[other][1][own_lane]
        _exchange(sent, received, peer)
        seconds = min(_timed(sent, received, peer, context) for _ in range(_NUM_TIMED))
        found.append([hosts[other][0], size * 4 * 8 / 1e9 / seconds])
    meet_all(context)
    return found


def _timed(sent: torch.Tensor, received: torch.Tensor, peer: int, context: Context) -> float:
    wait_for_device(context)
    began = time.monotonic()
    _exchange(sent, received, peer)
    wait_for_device(context)
    return time.monotonic() - began


def _exchange(sent: torch.Tensor, received: torch.Tensor, peer: int) -> None:
    operations = [
        dist.P2POp(dist.isend, sent, peer),
        dist.P2POp(dist.irecv, received, peer),
    ]
    for work in dist.batch_isend_irecv(operations):
        work.wait()


def judge(setting: Setting, measures: Mapping[int, list[list[Any]]]) -> list[Finding]:
    """A host that is slow to most others is named once, other slow pairs one by one."""
    if setting.num_hosts == 1:
        return [Finding("skip", "one host")]
    speeds = _by_pair(setting, measures)
    usual = median(speeds.values())
    of_host = {
        host: _upper_quartile([gbps for pair, gbps in speeds.items() if host in pair])
        for host in setting.ranks_of_host
        if any(host in pair for pair in speeds)
    }
    usual_host = median(of_host.values())
    findings = []
    slow_hosts = {host for host, gbps in of_host.items() if gbps < _SLOW_FRAC * usual_host}
    for host in sorted(slow_hosts):
        findings.append(
            Finding(
                "warn",
                f"{host} exchanges {of_host[host]:,.2f} Gbit/s with other hosts, where "
                f"{usual_host:,.2f} is usual",
                f"leave {host} out of the job (Slurm: --exclude={host}) and check its network",
                tuple(setting.ranks_of_host[host]),
            )
        )
    for (one, other), gbps in sorted(speeds.items(), key=lambda item: item[1]):
        if gbps < _SLOW_FRAC * usual and not {one, other} & slow_hosts:
            findings.append(
                Finding(
                    "warn",
                    f"{one} and {other} exchange {gbps:,.2f} Gbit/s; the median is {usual:,.2f}",
                    "check the path between the two: cable, switch, routing",
                    (setting.ranks_of_host[one][0], setting.ranks_of_host[other][0]),
                )
            )
    (one, other), least = min(speeds.items(), key=lambda item: item[1])
    if setting.min_gbps is not None and least < setting.min_gbps:
        findings.append(
            Finding(
                "fail",
                f"{one} and {other} exchange {least:,.2f} Gbit/s; --min-gbps asks for "
                f"{setting.min_gbps:g}",
                "check their network; is it the one that NCCL and gloo should use?",
                (setting.ranks_of_host[one][0], setting.ranks_of_host[other][0]),
            )
        )
    text = f"{count(len(speeds), 'pair')}, {usual:,.2f} Gbit/s each way at the median"
    text += f", {least:,.2f} at least ({one} and {other})"
    return findings or [Finding("pass", text)]


def _upper_quartile(gbps: list[float]) -> float:
    """What a host reaches with a quarter of its partners, so that slow ones do not make it slow.

    Example: of three hosts, one slow, the two others have one fast partner each.
    """
    return sorted(gbps)[len(gbps) * 3 // 4]


def _by_pair(
    setting: Setting, measures: Mapping[int, list[list[Any]]]
) -> dict[tuple[str, str], float]:
    """Of each pair, all its ranks together; the slower of both ends counts."""
    sums: dict[tuple[str, str], float] = {}
    for rank, found in measures.items():
        for other, gbps in found:
            key = (setting.hosts[rank], other)
            sums[key] = sums.get(key, 0.0) + gbps
    order = {host: number for number, host in enumerate(setting.ranks_of_host)}
    speeds: dict[tuple[str, str], float] = {}
    for (one, other), gbps in sums.items():
        pair = (one, other) if order[one] < order[other] else (other, one)
        speeds[pair] = min(gbps, speeds.get(pair, gbps))
    return speeds
