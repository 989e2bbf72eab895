"""Checks: what each process computes on, and whether the planner's forecast fits into it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch

from common.commands import command
from launch.planner.forecast import GIB, forecast, make_run
from launch.planner.host import forecast_host
from launch.planner.machine import Machine
from launch.planner.memory import peak_moments
from launch.planner.models import find_architecture
from launch.preflight.finding import Finding, first_of_hosts, name_ranks, ranks_by_value
from launch.preflight.formatting import count, size
from launch.preflight.setting import Context, Setting
from training.model.ds_config import training_dtype

_IN_USE_FRAC = 0.1
"""More of a GPU in use than this, beyond our own context, belongs to another process."""


def measure(context: Context) -> dict[str, Any]:
    """Device, memory and host memory of this rank, in bytes."""
    host_total, host_free = host_memory()
    found: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)),
        "host_total": host_total,
        "host_free": host_free,
    }
    if not context.setting.on_gpu:
        return found | {"name": _processor(), "total": host_total, "free": host_free, "uuid": ""}
    properties = torch.cuda.get_device_properties(context.layout.device)
    free, total = torch.cuda.mem_get_info(context.layout.device)
    return found | {
        "name": properties.name,
        "uuid": str(properties.uuid),
        "capability": [properties.major, properties.minor],
        "total": total,
        "free": free,
    }


def judge(setting: Setting, measures: Mapping[int, dict[str, Any]]) -> list[Finding]:
    """The same device everywhere, one process on each GPU, and no other one on it."""
    (usual, most), *others = ranks_by_value({rank: m["name"] for rank, m in measures.items()})
    findings = [_summary(setting, measures, usual)]
    for name, ranks in others:
        findings.append(
            Finding(
                "warn",
                f"{name} on {name_ranks(ranks, setting.hosts)}, {usual} on {len(most)} others",
                "the slowest sets the pace of all: leave these hosts out, or use only such",
                ranks,
            )
        )
    if setting.on_gpu:
        findings += _of_gpus(setting, measures)
    else:
        findings += _of_cores(setting, measures)
    return findings


def _summary(setting: Setting, measures: Mapping[int, dict[str, Any]], name: str) -> Finding:
    free, total = (min(m[key] for m in measures.values()) for key in ("free", "total"))
    what = "GPU" if setting.on_gpu else "host"
    return Finding(
        "pass",
        f"{count(len(measures), 'process')} on {count(setting.num_hosts, 'host')}: {name}; "
        f"at least {size(free)} of {size(total)} of each {what} free",
    )


def _of_gpus(setting: Setting, measures: Mapping[int, dict[str, Any]]) -> list[Finding]:
    findings = []
    for uuid, ranks in ranks_by_value({rank: m["uuid"] for rank, m in measures.items()}):
        if len(ranks) > 1:
            findings.append(
                Finding(
                    "fail",
                    f"{name_ranks(ranks, setting.hosts)} share one GPU ({uuid})",
                    "start one process per GPU: check LOCAL_RANK and CUDA_VISIBLE_DEVICES",
                    ranks,
                )
            )
    used = {r: 1 - m["free"] / m["total"] for r, m in measures.items()}
    if busy := tuple(rank for rank, frac in used.items() if frac > _IN_USE_FRAC):
        findings.append(
            Finding(
                "warn",
                f"up to {max(used.values()):.0%} of the GPU is in use already for "
                f"{name_ranks(busy, setting.hosts)}",
                "end leftover processes there: nvidia-smi lists them",
                busy,
            )
        )
    old = tuple(rank for rank, m in measures.items() if m["capability"] < [8, 0])
    if old and training_dtype(setting.recipe.deepspeed) is torch.bfloat16:
        findings.append(
            Finding(
                "warn",
                f"bf16 without hardware for it on {name_ranks(old, setting.hosts)}",
                "use GPUs of compute capability 8.0 or more",
                old,
            )
        )
    return findings


def _of_cores(setting: Setting, measures: Mapping[int, dict[str, Any]]) -> list[Finding]:
    return [
        Finding(
            "warn",
            f"{count(len(setting.ranks_of_host[setting.hosts[rank]]), 'process')} on "
            f"{count(found['cores'], 'core')} of {setting.hosts[rank]}",
            "start at most one process per core",
            (rank,),
        )
        for rank, found in first_of_hosts(measures, setting.hosts).items()
        if len(setting.ranks_of_host[setting.hosts[rank]]) > found["cores"]
    ]


def judge_memory(setting: Setting, measures: Mapping[int, dict[str, Any]]) -> list[Finding]:
    """The forecast of the planner against what is free; it only warns, since it is a forecast."""
    try:
        need_device, need_host = _forecast(setting, measures)
    except ValueError as error:
        return [Finding("skip", f"no forecast: {error}")]
    short = {rank: m["free"] for rank, m in measures.items() if m["free"] < need_device}
    findings = []
    if setting.on_gpu and short:
        findings.append(
            Finding(
                "warn",
                f"the forecast is {size(need_device)} of a GPU, and {size(min(short.values()))} "
                f"are free for {name_ranks(tuple(short), setting.hosts)}",
                _ask_planner(setting, measures),
                tuple(short),
            )
        )
    for rank, found in first_of_hosts(measures, setting.hosts).items():
        host = setting.hosts[rank]
        on_host = len(setting.ranks_of_host[host])
        need = need_host + (0 if setting.on_gpu else on_host * need_device)
        if need > found["host_free"]:
            findings.append(
                Finding(
                    "warn",
                    f"the forecast is {size(need)} of the memory of {host}, and "
                    f"{size(found['host_free'])} are free",
                    _ask_planner(setting, measures),
                    (rank,),
                )
            )
    if findings:
        return findings
    free = median(m["free"] for m in measures.values())
    of = "GPU" if setting.on_gpu else "process"
    return [
        Finding(
            "pass", f"forecast {size(need_device)} per {of} at the peak, {size(int(free))} free"
        )
    ]


def _forecast(setting: Setting, measures: Mapping[int, dict[str, Any]]) -> tuple[int, int]:
    """Bytes of a rank's tensors (on a GPU with CUDA's own), and of a node's host besides them."""
    ranks_per_node = max(map(len, setting.ranks_of_host.values()))
    if setting.on_gpu:
        total = min(m["total"] for m in measures.values())
        machine = Machine(
            num_gpus=setting.world_size, gpu_gib=total / GIB, gpus_per_node=ranks_per_node
        )
        found = forecast(setting.recipe, machine)
        return found.peak_bytes, found.host.peak_bytes
    arch = find_architecture(setting.recipe)
    run = make_run(setting.recipe, arch, world_size=setting.world_size, on_gpu=False)
    host = forecast_host(setting.recipe, run, ranks_per_node=ranks_per_node, pack_tokens=None)
    peak = max(moment.total for moment in peak_moments(run).values())
    # the processes themselves are here already, and what they hold is not free
    return peak, host.peak_bytes - host.processes


def _ask_planner(setting: Setting, measures: Mapping[int, dict[str, Any]]) -> str:
    gib = min(m["total"] for m in measures.values()) / GIB
    plan = command(f"launch plan RECIPE --gpus {setting.world_size} --gpu-gib {gib:.0f}")
    return f"{plan} names the cheapest change that fits"


def host_memory() -> tuple[int, int]:
    """Total and free bytes of the machine, or of the container that limits it."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    total, free = kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        limit, used = _number_in(limit_file), _number_in(used_file)
        if limit is not None and used is not None and limit < total:
            total, free = limit, min(free, limit - used)
    return total, free


def _number_in(path: str) -> int | None:
    """None where there is no such file, or it says `max`."""
    try:
        text = Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return None if text == "max" else int(text)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return f"CPU {line.split(':', 1)[1].strip()}"
    return "CPU"
