"""complete.json: what a complete folder contains, bit for bit; written last, checked first."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import torch.distributed as dist

from common.checksum import FileRecord, record_file
from common.durable import fsync_path, write_all
from training.ranks.dist import Layout, broadcast_from_rank0

MANIFEST = "complete.json"
CARD = "README.md"
"""The model card of an export."""
_FORMAT = 3
_OWN_HASH = "sha256_of_the_rest"
_FORMAT_2_BEGINS = b'{\n "format": 2,\n'


def write_manifest(
    folder: Path, content: Mapping[str, Any], *, files: Mapping[str, FileRecord]
) -> None:
    """Mark a folder as complete, durably: what it is, its files, and what wrote it.

    Raises:
        OSError: when the write fails.
    """
    manifest: dict[str, Any] = {
        **content,
        "format": _FORMAT,
        "versions": _versions(),
        "files": {name: asdict(files[name]) for name in sorted(files)},
    }
    descriptor = os.open(folder / MANIFEST, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        rest = json.dumps(manifest, indent=1).removeprefix("{\n").encode()
        write_all(descriptor, _seal(rest) + rest)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    for inner in {folder, *((folder / name).parent for name in files)}:
        fsync_path(inner)


def read_manifest(folder: Path) -> dict[str, Any]:
    """`step`, `tokens`, `identity`, `layout` and whatever else a manifest records.

    Raises:
        ValueError: when it is damaged.
        OSError: when it is missing.
    """
    return parse_manifest((folder / MANIFEST).read_bytes())


def parse_manifest(text: bytes) -> dict[str, Any]:
    """`read_manifest` from the bytes of the file.

    Raises:
        ValueError: when any of them has changed.
    """
    is_older = text.startswith(_FORMAT_2_BEGINS)
    rest = text[len(_seal(b"")) :]
    if not is_older and text != _seal(rest) + rest:
        raise ValueError(
            f"damaged: its checksum is {sha256(rest).hexdigest()}, but it begins with "
            f"{text[: len(_seal(b''))].decode(errors='replace').split()}"
        )
    content = json.loads(text)
    own_hash = content.pop(_OWN_HASH, None)
    if is_older and own_hash != _hash_of_content(content):
        raise ValueError(f"damaged: the sha256 of its content is not {own_hash}")
    if not is_older and content.get("format") != _FORMAT:
        raise ValueError(f"expected format {_FORMAT}, found {content.get('format')}")
    return content


def judged_loss(manifest: Mapping[str, Any]) -> float | None:
    """By which a checkpoint is the best: finite, of an evaluation after the first step, or None.

    Older versions stored the base model's loss in checkpoints from before the first evaluation.
    """
    loss: float | None = manifest["heldout_loss"]
    if loss is None or not math.isfinite(loss) or manifest.get("evaluated_step") == 0:
        return None
    return loss


def trained_loss(manifest: Mapping[str, Any]) -> float | None:
    """The held-out loss of the weights as they were trained, of a checkpoint or an export.

    None where the one that is kept is their average's (`ema.decides_best`).
    """
    recipe = manifest.get("identity", {}).get("recipe", {})
    if (recipe.get("ema") or {}).get("decides_best"):
        return None
    loss: float | None = manifest["heldout_loss"]
    return loss


def run_key_of(manifest: Mapping[str, Any]) -> str | None:
    """By which trackers and `checkpoint.mirror` know the run; None if neither was used."""
    key: str | None = manifest.get("run_key", manifest.get("tracked_as"))  # its older name
    return key


def other_versions(manifest: Mapping[str, Any]) -> list[str]:
    """Which packages were others when it was written: "torch 2.12.0, now 2.13.0"."""
    return [
        f"{name} {manifest['versions'].get(name)}, now {now}"
        for name, now in _versions().items()
        if manifest["versions"].get(name) != now
    ]


def find_corruption(folder: Path, *, hashes: bool = False) -> str | None:
    """What is wrong with a checkpoint or an export, or None when it is intact.

    Args:
        hashes: read every file and compare its checksum, not only its size.
    """
    reason, files = _survey(folder)
    return reason or (_first_altered(folder, files) if hashes else None)


def find_corruption_together(folder: Path, layout: Layout) -> str | None:
    """`find_corruption` with hashes, each rank reading a share; the same on every rank."""
    reason, files = broadcast_from_rank0(_survey(folder) if layout.is_main else (None, {}))
    if reason is None:
        by_size = sorted(files, key=lambda name: (-files[name].num_bytes, name))
        share = {name: files[name] for name in by_size[layout.rank :: layout.world_size]}
        reasons: list[str | None] = [None] * layout.world_size
        dist.all_gather_object(reasons, _first_altered(folder, share))
        reason = next((each for each in reasons if each), None)
    return reason


def newest_complete(root: Path, *, hashes: bool = False) -> Path | None:
    """The newest complete checkpoint, by the sizes of its files or also by their hashes.

    Reports on stderr which newer ones it skips, and why.
    """
    for candidate in _newest_first(root):
        reason = find_corruption(candidate, hashes=hashes)
        if reason is None:
            return candidate
        _report_skipped(reason)
    return None


def newest_verified(root: Path, layout: Layout) -> Path | None:
    """The newest checkpoint whose files all match their hashes; every rank calls it.

    Returns:
        None when there is none; rank 0 reports on stderr which newer ones are skipped.

    Raises:
        ValueError: when there are checkpoints but none is intact, rather than train over them.
    """
    candidates: list[Path] = broadcast_from_rank0(_newest_first(root) if layout.is_main else [])
    reason = None
    for candidate in candidates:
        reason = find_corruption_together(candidate, layout)
        if reason is None:
            return candidate
        if layout.is_main:
            _report_skipped(reason)
    if reason is not None:
        raise ValueError(
            f"{root}: none of {len(candidates)} checkpoints is intact, the oldest: {reason}. "
            "Restore one, or move the folder away to train from scratch"
        )
    return None


def _newest_first(root: Path) -> list[Path]:
    return sorted(root.glob("step-*"), reverse=True)


def _report_skipped(reason: str) -> None:
    print(f"skipping an incomplete checkpoint: {reason}", file=sys.stderr, flush=True)


def _survey(folder: Path) -> tuple[str | None, dict[str, FileRecord]]:
    """What is wrong as far as names and sizes show, and the expected files."""
    try:
        content = read_manifest(folder)
        files = {name: FileRecord(**record) for name, record in content["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{folder / MANIFEST}: {error}", {}
    for name, record in files.items():
        path, parts = folder / name, PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts:
            return f"{folder / MANIFEST}: {name!r} points outside the folder", {}
        if path.is_symlink() or (path.exists() and not path.is_file()):
            return f"{path}: expected a plain file", {}
        found = path.stat().st_size if path.exists() else None
        if found != record.num_bytes:
            return f"{path}: expected {record.num_bytes} bytes, found {found}", {}
    # DeepSpeed finds its files by pattern, so an extra one could be taken for a rank's
    for path in sorted(folder.rglob("*.pt")):
        if path.relative_to(folder).as_posix() not in files:
            return f"{path}: not among the files that were saved", {}
    return None, files


def _first_altered(folder: Path, files: Mapping[str, FileRecord]) -> str | None:
    for name, expected in files.items():
        try:
            found = record_file(folder / name)
        except OSError as error:
            return f"{folder / name}: {error.strerror}"
        if found != expected:
            return f"{folder / name}: expected sha256 {expected.sha256}, found {found.sha256}"
    return None


def _seal(rest: bytes) -> bytes:
    """How a manifest begins: with the hash of every byte that follows."""
    return f'{{\n "{_OWN_HASH}": "{sha256(rest).hexdigest()}",\n'.encode()


def _hash_of_content(content: Mapping[str, Any]) -> str:
    """As in format 2, which misses a change of a float's last digit that rounds to the same."""
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _versions() -> dict[str, str]:
    packages = ("torch", "deepspeed", "transformers")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
