"""Checks: bandwidth of all-reduce and all-to-all, and that their results are correct."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from launch.preflight.finding import Finding, name_ranks
from launch.preflight.formatting import count
from launch.preflight.setting import Context, Setting

_GPU_BYTES, _CPU_BYTES = 128 * 2**20, 8 * 2**20
_SECONDS, _MAX_CALLS = 0.5, 20
_SLOW_FRAC = 1 / 2


def num_bytes(context: Context) -> int:
    """Of a message that is large enough for bandwidth, not latency, to dominate."""
    return _GPU_BYTES if context.setting.on_gpu else _CPU_BYTES


def measure_all_reduce(context: Context) -> dict[str, Any] | None:
    """Bus bandwidth: what each rank must send and receive for a sum over all, 2(n-1)/n of it.

    Raises:
        ValueError: when a sum is wrong.
    """
    layout = context.layout
    if layout.world_size == 1:
        return None
    own = torch.full((4,), float(layout.rank + 1), device=layout.device)
    dist.all_reduce(own)
    expected = layout.world_size * (layout.world_size + 1) / 2
    if own.tolist() != [expected] * 4:
        raise ValueError(f"all-reduce gave {own.tolist()}, expected {expected}")
    data = torch.ones(num_bytes(context) // 4, device=layout.device)
    seconds = seconds_of(lambda: dist.all_reduce(data), context)
    share = 2 * (layout.world_size - 1) / layout.world_size
    return {"gbps": share * num_bytes(context) * 8 / 1e9 / seconds}


def judge_all_reduce(setting: Setting, measures: Mapping[int, Any]) -> list[Finding]:
    """All ranks wait for the slowest, so there is one figure; --min-gbps is for one host here."""
    if setting.world_size == 1:
        return [Finding("skip", "one process")]
    gbps = min(found["gbps"] for found in measures.values())
    text = f"{gbps:,.2f} Gbit/s (bus bandwidth) over {setting.world_size} processes"
    if setting.num_hosts == 1 and setting.min_gbps is not None and gbps < setting.min_gbps:
        return [
            Finding(
                "fail",
                f"{text}; --min-gbps asks for {setting.min_gbps:g}",
                "nvidia-smi topo -m shows how GPUs are connected; see NCCL_P2P_DISABLE",
            )
        ]
    return [Finding("pass", text)]


def measure_all_to_all(context: Context) -> dict[str, Any] | None:
    """What each rank of a group sends to its other ranks per second.

    Raises:
        ValueError: when something arrives in the wrong place.
    """
    layout = context.layout
    if layout.sp_size == 1:
        return None
    group, _ = dist.new_subgroups(group_size=layout.sp_size)
    _check_delivery(context, group)
    data = torch.ones(num_bytes(context) // 4 // layout.sp_size * layout.sp_size)
    sent = data.to(layout.device)
    received = torch.empty_like(sent)
    seconds = seconds_of(lambda: dist.all_to_all_single(received, sent, group=group), context)
    share = (layout.sp_size - 1) / layout.sp_size
    return {"gbps": share * num_bytes(context) * 8 / 1e9 / seconds}


def _check_delivery(context: Context, group: Any) -> None:
    """Each rank sends 100 * itself + receiver, so each knows what it should get."""
    layout = context.layout
    ranks = torch.arange(layout.sp_size, device=layout.device)
    sent = 100 * layout.sp_rank + ranks
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    expected = (100 * ranks + layout.sp_rank).tolist()
    if received.tolist() != expected:
        raise ValueError(f"all-to-all gave {received.tolist()}, expected {expected}")


def judge_all_to_all(setting: Setting, measures: Mapping[int, Any]) -> list[Finding]:
    """Groups below half of the median are named."""
    if setting.sp_size == 1:
        return [Finding("skip", "sequences are not shared (train.sequence_parallel_size 1)")]
    usual = median(found["gbps"] for found in measures.values())
    slow = tuple(r for r, found in measures.items() if found["gbps"] < _SLOW_FRAC * usual)
    if slow:
        least = min(measures[rank]["gbps"] for rank in slow)
        return [
            Finding(
                "warn",
                f"{least:,.2f} Gbit/s on {name_ranks(slow, setting.hosts)}, {usual:,.2f} at the "
                "median of all groups",
                "keep a group within a host; check the links of these hosts",
                slow,
            )
        ]
    num_groups = setting.world_size // setting.sp_size
    return [
        Finding(
            "pass",
            f"{usual:,.2f} Gbit/s per process in {count(num_groups, 'group')} of {setting.sp_size}",
        )
    ]


def seconds_of(call: Callable[[], object], context: Context) -> float:
    """Mean time of a collective, after a warm-up; every rank makes equally many calls."""
    call()
    first = torch.tensor([_timed(call, context)])
    dist.all_reduce(first, op=dist.ReduceOp.MAX, group=context.cpu_group)
    num_calls = max(1, min(_MAX_CALLS, int(_SECONDS / max(float(first), 1e-9))))
    return _timed(lambda: [call() for _ in range(num_calls)], context) / num_calls


def _timed(call: Callable[[], object], context: Context) -> float:
    wait_for_device(context)
    began = time.monotonic()
    call()
    wait_for_device(context)
    return time.monotonic() - began


def wait_for_device(context: Context) -> None:
    if context.setting.on_gpu:
        torch.cuda.synchronize(context.layout.device)


def meet_all(context: Context) -> Tensor:
    """A barrier: no rank continues before all have arrived."""
    one = torch.ones(1, device=context.layout.device)
    dist.all_reduce(one)
    wait_for_device(context)
    return one
