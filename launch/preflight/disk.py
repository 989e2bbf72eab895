"""Checks: room on disk for what a run leaves, and speed of the run folder and the corpus."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from common.commands import command
from data_prep.shards import open_corpus
from launch.planner.corpus import read_size
from launch.planner.forecast import make_run
from launch.planner.host import Host, forecast_host
from launch.planner.models import find_architecture
from launch.preflight.finding import Finding, name_ranks
from launch.preflight.formatting import count, rate, size
from launch.preflight.setting import Context, Setting

_MIB = 2**20
_WRITE_MIB, _READ_MIB = 32, 64
_ENOUGH_MIB = 8
"""A smaller corpus says nothing about speed."""
_PIECE_BYTES = 4 * _MIB
_SLOW_FRAC = 1 / 4
"""A rank below this share of the median is reported."""
_SAVE_SECONDS, _VERIFY_SECONDS = 600.0, 300.0
"""What a checkpoint and the checksums at a start may take without a warning."""
_FEW_INODES = 10_000


def measure_space(context: Context) -> dict[str, Any]:
    """Bytes and file names that are free where the run folder is, or will be."""
    folder = context.setting.run_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    found = os.statvfs(folder)
    # file systems without a fixed number of names report 0
    names = found.f_favail if found.f_files else None
    return {"free": found.f_bavail * found.f_frsize, "names": names}


def judge_space(setting: Setting, measures: Mapping[int, dict[str, Any]]) -> list[Finding]:
    """Room for less than one checkpoint and the export fails; less than the run keeps warns."""
    rank = min(measures, key=lambda rank: measures[rank]["free"])
    found, host = measures[rank], setting.hosts[rank]
    findings = []
    if found["names"] is not None and found["names"] < _FEW_INODES:
        findings.append(
            Finding(
                "warn",
                f"run_dir {setting.run_dir} on {host}: room for {found['names']:,} more files only",
                "remove small files there",
                (rank,),
            )
        )
    try:
        need = _on_disk(setting)
    except ValueError as error:
        free = f"{size(found['free'])} free"
        return [*findings, Finding("pass", f"{free} (no forecast of what is needed: {error})")]
    least = need.checkpoint_on_disk + need.export_on_disk
    most = need.checkpoint_on_disk * need.checkpoints_kept + need.export_on_disk
    most += need.entropies_on_disk
    where = f"run_dir {setting.run_dir} on {host} has {size(found['free'])} free"
    kept = f"{count(need.checkpoints_kept, 'checkpoint')} and the export take {size(most)}"
    todo = "make room, lower checkpoint.keep_last, or choose another run_dir"
    if found["free"] < least:
        text = f"{where}; one checkpoint and the export take {size(least)}"
        return [*findings, Finding("fail", text, todo, (rank,))]
    if found["free"] < most:
        return [*findings, Finding("warn", f"{where}; {kept}", todo, (rank,))]
    return [*findings, Finding("pass", f"{where}; {kept}")]


def _on_disk(setting: Setting) -> Host:
    recipe = setting.recipe
    run = make_run(
        recipe,
        find_architecture(recipe),
        world_size=setting.world_size,
        on_gpu=setting.on_gpu,
    )
    corpus = read_size(recipe)
    tokens = corpus.pack_tokens if corpus else None
    return forecast_host(recipe, run, ranks_per_node=1, pack_tokens=tokens)


def measure(context: Context) -> dict[str, float]:
    """Bytes a second of this rank, while all others do the same; what was written is read back.

    Raises:
        ValueError: where writing is not possible, or reads return other bytes.
    """
    path = context.own_file
    piece = os.urandom(_PIECE_BYTES)
    began = time.monotonic()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb", buffering=0) as file:
            for _ in range(_WRITE_MIB * _MIB // _PIECE_BYTES):
                file.write(piece)
            os.fsync(file.fileno())
            written_seconds = time.monotonic() - began
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with path.open("rb") as file:
            while found := file.read(_PIECE_BYTES):
                if found != piece:
                    raise ValueError(f"{path}: reads return other bytes than were written")
    except OSError as error:
        raise ValueError(
            f"run_dir {path.parent}: {error.strerror}; make room there or choose another"
        ) from None
    finally:
        with suppress(OSError):
            path.unlink()
    return {"write": _WRITE_MIB * _MIB / written_seconds, **_read_corpus(context)}


def _read_corpus(context: Context) -> dict[str, float]:
    """From the disk and not from memory, at this rank's own position."""
    corpus = open_corpus(context.recipe.data.corpus)
    files = [file for file in corpus.manifest.files() if file.num_bytes]
    total = float(sum(file.num_bytes for file in files))
    largest = max(files, key=lambda file: file.num_bytes)
    rank, world_size = context.layout.rank, context.layout.world_size
    first = largest.num_bytes * rank // world_size
    with (corpus.folder / largest.name).open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began, num_bytes = time.monotonic(), 0
        file.seek(first)
        while num_bytes < _READ_MIB * _MIB and (piece := file.read(_PIECE_BYTES)):
            num_bytes += len(piece)
        seconds = max(time.monotonic() - began, 1e-6)
    return {"read": num_bytes / seconds, "read_bytes": float(num_bytes), "corpus_bytes": total}


def judge(setting: Setting, measures: Mapping[int, dict[str, float]]) -> list[Finding]:
    """No rank far below the median; saves and checksums that end in minutes."""
    findings = []
    reads_enough = min(m["read_bytes"] for m in measures.values()) >= _ENOUGH_MIB * _MIB
    for key, what in (("write", "writing to run_dir"), ("read", "reading data.corpus")):
        usual = median(m[key] for m in measures.values())
        slow = tuple(r for r, m in measures.items() if m[key] < _SLOW_FRAC * usual)
        if slow and (key == "write" or reads_enough):
            least = min(measures[rank][key] for rank in slow)
            findings.append(
                Finding(
                    "warn",
                    f"{what}: {rate(least)} on {name_ranks(slow, setting.hosts)}, {rate(usual)} "
                    "at the median",
                    "check the mount and the network of these hosts",
                    slow,
                )
            )
    writes = sum(m["write"] for m in measures.values())
    reads = sum(m["read"] for m in measures.values())
    findings += _of_saves(setting, writes)
    corpus_bytes = next(iter(measures.values()))["corpus_bytes"]
    verifies = reads_enough and setting.recipe.data.verify == "hashes"
    if verifies and corpus_bytes / reads > _VERIFY_SECONDS:
        verify = command("data_prep verify --deep")
        findings.append(
            Finding(
                "warn",
                f"a start reads the corpus, {size(corpus_bytes)} at {rate(reads)}: "
                f"{corpus_bytes / reads / 60:.0f} minutes",
                f"check it once with {verify} and set data.verify: sizes",
            )
        )
    text = f"all together write {rate(writes)} to run_dir"
    text += f" and read {rate(reads)} of the corpus" if reads_enough else ""
    return findings or [Finding("pass", text)]


def _of_saves(setting: Setting, writes: float) -> list[Finding]:
    try:
        seconds = _on_disk(setting).checkpoint_on_disk / writes
    except ValueError:
        return []  # reported where the room on this disk is judged
    if seconds <= _SAVE_SECONDS:
        return []
    text = f"at {rate(writes)} of all ranks a checkpoint takes {seconds / 60:.0f} minutes"
    return [
        Finding("warn", text, "use a faster file system for run_dir; raise watchdog.slow_seconds")
    ]


def clean_up(context: Context) -> None:
    """Remove what rank 0 left for the others to find, and an empty run folder."""
    folder: Path = context.setting.run_dir
    with suppress(OSError):  # a folder that is not writable has been reported
        context.shared_file.unlink()
    with suppress(OSError):  # one that is not empty stays
        folder.rmdir()
