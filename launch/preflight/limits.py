"""Checks: limits of the process and its container, and unusual environment variables."""

from __future__ import annotations

import os
import re
import resource
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.shards import open_corpus
from launch.preflight.finding import Finding, first_of_hosts, name_ranks, ranks_by_value
from launch.preflight.formatting import count
from launch.preflight.setting import Context, Setting

_MIB = 2**20
_SPARE_FILES = 512
_SHM_GPU_MIB, _SHM_CPU_MIB = 1024, 32
"""NCCL's own documentation asks for 1 GiB in containers, whose default is 64 MiB."""
_READ = re.compile(r"^(NCCL|TORCH_NCCL|GLOO|OMP|CUDA|TORCH|DEEPSPEED|DS|HF_HUB|UCX|FI)_?")
_SLOW = {
    "CUDA_LAUNCH_BLOCKING": ("1", "the CPU waits for every kernel"),
    "NCCL_P2P_DISABLE": ("1", "GPUs of a host do not copy to each other directly"),
    "NCCL_SHM_DISABLE": ("1", "GPUs of a host communicate through the network"),
    "NCCL_IB_DISABLE": ("1", "InfiniBand is not used"),
    "TORCH_DISTRIBUTED_DEBUG": ("DETAIL", "every collective is compared among ranks first"),
    "NCCL_DEBUG": ("INFO", "thousands of lines at startup"),
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": ("0", "a lost rank leaves the others waiting forever"),
    "NCCL_ASYNC_ERROR_HANDLING": ("0", "a lost rank leaves the others waiting forever"),
}


def measure(context: Context) -> dict[str, Any]:
    """Limits of this process, and bytes of its shared memory."""
    shared = os.statvfs("/dev/shm") if Path("/dev/shm").is_dir() else None
    return {
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "memlock": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        "shm": shared.f_bavail * shared.f_frsize if shared else 0,
        "corpus_files": _corpus_files(context),
    }


def _corpus_files(context: Context) -> int:
    """Each holds a descriptor once mapped; 0 if there is no corpus, which another check reports."""
    try:
        return len(list(open_corpus(context.recipe.data.corpus).manifest.files()))
    except (ValueError, OSError):
        return 0


def judge(setting: Setting, measures: Mapping[int, dict[str, Any]]) -> list[Finding]:
    """Enough of each; NCCL's requirements only where there is NCCL."""
    need_mib = _SHM_GPU_MIB if setting.on_gpu else _SHM_CPU_MIB
    findings = []
    for rank, found in first_of_hosts(measures, setting.hosts).items():
        host = setting.hosts[rank]
        # connections: gloo and NCCL keep a few to every other rank
        need_files = found["corpus_files"] + 4 * setting.world_size + _SPARE_FILES
        if found["open_files"] != resource.RLIM_INFINITY and found["open_files"] < need_files:
            findings.append(
                Finding(
                    "warn",
                    f"{host} lets a process open {found['open_files']:,} files; corpus and "
                    f"connections take up to {need_files:,}",
                    f"ulimit -n {need_files * 2} before the start, or nofile in limits.conf",
                    (rank,),
                )
            )
        if found["shm"] < need_mib * _MIB:
            findings.append(
                Finding(
                    "warn",
                    f"{host} has {found['shm'] / _MIB:,.0f} MiB free in /dev/shm; {need_mib:,} are "
                    "wanted",
                    "start containers with --shm-size=8g or --ipc=host; remove leftovers there",
                    (rank,),
                )
            )
        if setting.on_gpu and found["memlock"] != resource.RLIM_INFINITY:
            findings.append(
                Finding(
                    "warn",
                    f"{host} lets a process lock {found['memlock'] / _MIB:,.0f} MiB of memory; "
                    "InfiniBand and pinned memory need it unlimited",
                    "ulimit -l unlimited; containers: --ulimit memlock=-1",
                    (rank,),
                )
            )
    if findings:
        return findings
    least = {key: min(m[key] for m in measures.values()) for key in ("open_files", "shm")}
    return [
        Finding(
            "pass",
            f"{least['open_files']:,} open files, {least['shm'] / _MIB:,.0f} MiB in /dev/shm",
        )
    ]


def measure_environment(_: Context) -> dict[str, Any]:
    """Variables that libraries of distributed training read, and interfaces of this host."""
    return {
        "variables": {k: v for k, v in os.environ.items() if _READ.match(k) and "TOKEN" not in k},
        "interfaces": [name for _, name in socket.if_nameindex()],
    }


def judge_environment(setting: Setting, measures: Mapping[int, dict[str, Any]]) -> list[Finding]:
    """Values that cost speed, hide errors, name nothing that exists, or differ."""
    findings: list[Finding] = []
    by_rank = {rank: found["variables"] for rank, found in measures.items()}
    for name, (value, why) in _SLOW.items():
        if ranks := tuple(rank for rank, own in by_rank.items() if own.get(name) == value):
            findings.append(
                Finding(
                    "warn",
                    f"{name}={value} on {name_ranks(ranks, setting.hosts)}: {why}",
                    f"unset {name} unless you are debugging",
                    ranks,
                )
            )
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        findings += _of_interface(setting, measures, name)
    findings += _of_timeout(setting, by_rank)
    for name in sorted({name for own in by_rank.values() for name in own}):
        # of CUDA's, only those that name devices may differ, and they do
        if name.startswith(("NCCL", "TORCH_NCCL", "GLOO", "UCX", "FI", "DEEPSPEED")):
            (usual, _), *others = ranks_by_value({r: own.get(name) for r, own in by_rank.items()})
            for value, ranks in others:
                findings.append(
                    Finding(
                        "warn",
                        f"{name} is {_shown(value)} on {name_ranks(ranks, setting.hosts)}, "
                        f"{_shown(usual)} elsewhere",
                        "set it on all hosts or on none (ENTRODROP_SITE_ENV of launch/env.sh)",
                        ranks,
                    )
                )
    if findings:
        return findings
    names = sorted(n for n in by_rank[min(by_rank)] if n.startswith(("NCCL", "GLOO", "DEEPSPEED")))
    return [
        Finding("pass", f"nothing unusual ({', '.join(names) or 'no NCCL or gloo variables set'})")
    ]


def _shown(value: str | None) -> str:
    return "not set" if value is None else repr(value)


def _of_interface(
    setting: Setting, measures: Mapping[int, dict[str, Any]], name: str
) -> list[Finding]:
    """NCCL's syntax: a list of prefixes, "=" before exact names, "^" before those to exclude."""
    findings = []
    for rank, found in first_of_hosts(measures, setting.hosts).items():
        value = found["variables"].get(name, "")
        wanted = [part for part in value.removeprefix("=").split(",") if part]
        if not wanted or value.startswith("^"):
            continue
        chosen = [own for own in found["interfaces"] if own.startswith(tuple(wanted))]
        if not chosen:
            why = f"{setting.hosts[rank]} has only {', '.join(found['interfaces'])}"
        elif chosen == ["lo"] and setting.num_hosts > 1:
            why = "the loopback interface reaches no other host"
        else:
            continue
        findings.append(
            Finding(
                "fail",
                f"{name}={value}, but {why}",
                "name the network that all hosts share",
                (rank,),
            )
        )
    return findings


def _of_timeout(setting: Setting, by_rank: Mapping[int, dict[str, str]]) -> list[Finding]:
    """DeepSpeed's own limit for a collective, in whole minutes; its default is 10."""
    found = []
    for rank, own in first_of_hosts(by_rank, setting.hosts).items():
        minutes = int(own.get("DEEPSPEED_TIMEOUT", "10"))
        limit_seconds = setting.recipe.watchdog.slow_seconds
        if minutes * 60 < 60 * 5:
            found.append(
                Finding(
                    "warn",
                    f"DEEPSPEED_TIMEOUT={minutes} on {setting.hosts[rank]}: "
                    f"{count(minutes, 'minute')} for the slowest "
                    "collective, loading of weights among them",
                    f"10 or more; the watchdog ends what hangs (watchdog.slow_seconds is "
                    f"{limit_seconds:g})",
                    (rank,),
                )
            )
    return found
