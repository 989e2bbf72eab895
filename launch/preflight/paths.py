"""Checks: one run folder, corpus and model for all hosts; home, TMPDIR and caches of each."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.preflight.finding import Finding, first_of_hosts, name_hosts, name_ranks, ranks_by_value
from launch.preflight.setting import Context, Setting

_WAIT_SECONDS = 15.0
"""A file of another host may take this long to appear over NFS."""
_TMP_MIB = 256


def measure(context: Context) -> dict[str, Any]:
    """What this rank sees of the shared paths; rank 0 writes a file there first."""
    recipe, shared = context.recipe, context.shared_file
    found: dict[str, Any] = {"sees": None, "error": None, "owner_is_me": True}
    if context.layout.is_main:
        try:
            shared.parent.mkdir(parents=True, exist_ok=True)
            shared.write_text(context.nonce, encoding="ascii")
            found["owner_is_me"] = shared.stat().st_uid == os.geteuid()
        except OSError as error:
            found["error"] = f"{shared.parent}: {error.strerror}"
    found["sees"] = _sees(shared, context.nonce, seconds=0 if found["error"] else _WAIT_SECONDS)
    found["corpus"] = _hash_of(Path(recipe.data.corpus) / "manifest.json")
    if recipe.model.pretrained and Path(recipe.model.pretrained).is_dir():
        found["model"] = _hash_of(Path(recipe.model.pretrained) / "config.json")
    return found


def _sees(path: Path, content: str, *, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        try:
            list(path.parent.iterdir())  # makes NFS reread the folder
            if path.read_text(encoding="ascii") == content:
                return True
        except OSError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def _hash_of(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError:
        return None


def judge(setting: Setting, measures: Mapping[int, dict[str, Any]]) -> list[Finding]:
    """Every rank sees rank 0's file, and reads the same manifest and model."""
    main = measures.get(0, {})
    if main.get("error"):
        return [Finding("fail", f"run_dir {main['error']}", "choose a writable run_dir", (0,))]
    findings = []
    if blind := tuple(rank for rank, found in measures.items() if not found["sees"]):
        findings.append(
            Finding(
                "fail",
                f"run_dir {setting.run_dir}: a file that {setting.hosts[0]} wrote there is not "
                f"visible to {name_ranks(blind, setting.hosts)}",
                "put run_dir on a file system that all hosts mount at the same path",
                blind,
            )
        )
    if not main.get("owner_is_me", True):
        findings.append(
            Finding(
                "warn",
                f"run_dir {setting.run_dir}: written files belong to someone else (root squash)",
                "run as your own user, or files of root may become unreadable",
                (0,),
            )
        )
    where = {
        "corpus": f"data.corpus {setting.recipe.data.corpus}: manifest.json",
        "model": f"model.pretrained {setting.recipe.model.pretrained}: config.json",
    }
    for key, name in where.items():
        values = {rank: found[key] for rank, found in measures.items() if key in found}
        if values:
            findings += _of_hashes(setting, values, name)
    if findings:
        return findings
    hosts = f"{setting.num_hosts} hosts" if setting.num_hosts > 1 else "the one host"
    return [Finding("pass", f"run folder, corpus and model are the same for {hosts}")]


def _of_hashes(setting: Setting, values: Mapping[int, str | None], name: str) -> list[Finding]:
    missing = tuple(rank for rank, value in values.items() if value is None)
    findings = []
    if missing:
        findings.append(
            Finding(
                "fail",
                f"{name} cannot be read on {name_hosts(missing, setting.hosts)}",
                "mount it there at the same path, or copy it",
                missing,
            )
        )
    there = {rank: value for rank, value in values.items() if value is not None}
    for value, ranks in ranks_by_value(there)[1:]:
        findings.append(
            Finding(
                "fail",
                f"{name} differs ({value}) on {name_hosts(ranks, setting.hosts)}",
                "copy it again: all hosts must use the same",
                ranks,
            )
        )
    return findings


def measure_caches(_: Context) -> dict[str, Any]:
    """Which folders of this user are not writable, and why; None for those that are."""
    home = Path("~").expanduser()
    hf_home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", hf_home / "hub")).expanduser()
    tmp = Path(tempfile.gettempdir())
    triton = os.environ.get("TRITON_CACHE_DIR")
    return {
        "home": [str(home), _why_not(home)],
        "HF cache": [str(hub), _why_not(hub)],
        "TMPDIR": [str(tmp), _why_not(tmp)],
        "TRITON_CACHE_DIR": [triton, _why_not(Path(triton))] if triton else None,
        "tmp_free": shutil.disk_usage(tmp).free,
    }


def _why_not(folder: Path) -> str | None:
    """Why a folder, or the one it would be created in, is not writable."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"preflight")
    except OSError as error:
        return f"{folder}: {error.strerror}"
    return None


def judge_caches(setting: Setting, measures: Mapping[int, dict[str, Any]]) -> list[Finding]:
    """A hub name needs the cache; kernels compiled at the start need home or their own folder."""
    by_name = (
        setting.recipe.model.pretrained is not None
        and not Path(setting.recipe.model.pretrained).is_dir()
    )
    findings = []
    for rank, found in first_of_hosts(measures, setting.hosts).items():
        host = setting.hosts[rank]
        wanted = ["TMPDIR", "TRITON_CACHE_DIR" if found["TRITON_CACHE_DIR"] else "home"]
        wanted += ["HF cache"] if by_name else []
        for name in wanted:
            path, why = found[name]
            if why:
                findings.append(
                    Finding("warn", f"{name} {path} of {host}: {why}", _REMEDIES[name], (rank,))
                )
        if found["tmp_free"] < _TMP_MIB * 2**20:
            findings.append(
                Finding(
                    "warn",
                    f"TMPDIR of {host} has {found['tmp_free'] / 2**20:.0f} MiB free",
                    "clear it, or set TMPDIR to a local disk",
                    (rank,),
                )
            )
    if findings:
        return findings
    first = measures[min(measures)]
    return [Finding("pass", f"writable: {first['home'][0]}, {first['TMPDIR'][0]}")]


_REMEDIES = {
    "home": "set HOME, or TRITON_CACHE_DIR and TORCH_EXTENSIONS_DIR, to a writable folder",
    "TRITON_CACHE_DIR": "name a writable folder on a local disk",
    "TMPDIR": "set TMPDIR to a writable folder on a local disk",
    "HF cache": "set HF_HOME to a writable folder, or model.pretrained to a local folder",
}
