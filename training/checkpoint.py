"""Checkpoints that are whole or absent: staged, marked complete, renamed; found and resumed."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from training.dist import Layout, raise_together
from training.engine import Engine
from training.entropy_cache import EntropyCache
from training.token_dropout import KeptThreshold

ENGINE_TAG = "zero3"
"""Folder of DeepSpeed's own files within a checkpoint."""
_MARKER = "complete.json"
_CACHE = "entropy_cache.f16"


@dataclass(frozen=True)
class Progress:
    """Where the run is: everything else of the future follows from it and the recipe."""

    step: int
    """Optimizer steps done."""
    tokens: int
    """Tokens of documents trained, padding left out."""
    threshold: KeptThreshold | None = None
    """For recipes whose next step drops by one that was found before."""


def save_checkpoint(
    engine: Engine,
    root: Path,
    *,
    progress: Progress,
    identity: dict[str, Any],
    keep_last: int,
    cache: EntropyCache | None = None,
) -> Path:
    """Write `root/step-<step>`; it appears under that name only when every rank has finished.

    Args:
        identity: what a resume must find unchanged: recipe, data, layout.
        keep_last: older checkpoints beyond so many are removed afterwards.
        cache: the run's entropies, copied as they are now.

    Raises:
        ValueError: on every rank when writing failed on any; older checkpoints stay.
    """
    final = root / f"step-{progress.step:08d}"
    staging = root / f".staging-{final.name}"
    if engine.layout.is_main:
        root.mkdir(parents=True, exist_ok=True)
        for left_over in (*root.glob(".staging-*"), *root.glob(".removed-*")):
            shutil.rmtree(left_over)
    dist.barrier()
    engine.ds.save_checkpoint(str(staging), tag=ENGINE_TAG, save_latest=False)
    raise_together(
        _save_random_state(staging, engine.layout.rank)
        or (_copy_cache(cache.save, staging / _CACHE, engine.layout) if cache else None)
    )
    if engine.layout.is_main:
        for script in staging.glob("*.py"):  # DeepSpeed's converters; export does their work
            script.unlink()
        _mark_and_publish(staging, final, progress=progress, identity=identity)
        _prune(root, keep_last=keep_last)
    dist.barrier()
    return final


def newest_complete(root: Path) -> Path | None:
    """The newest checkpoint whose marker is there and whose files have their recorded sizes.

    Says on stderr which newer ones it leaves aside, and why.
    """
    for candidate in sorted(root.glob("step-*"), reverse=True):
        reason = damage(candidate)
        if reason is None:
            return candidate
        print(f"{candidate} is not whole and left aside: {reason}", file=sys.stderr)
    return None


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None when it is whole."""
    marker = checkpoint / _MARKER
    try:
        files = json.loads(marker.read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"{marker}: {error}"
    for name, expected in files.items():
        path = checkpoint / name
        found = path.stat().st_size if path.exists() else None
        if found != expected:
            return f"{path}: expected {expected} bytes, found {found}"
    return None


def read_marker(checkpoint: Path) -> dict[str, Any]:
    """`step`, `tokens` and `identity` of a complete checkpoint."""
    return json.loads((checkpoint / _MARKER).read_text(encoding="utf-8"))


def load_checkpoint(
    engine: Engine,
    checkpoint: Path,
    *,
    identity: dict[str, Any],
    cache: EntropyCache | None = None,
) -> Progress:
    """Bring weights, optimizer, random state and the run's entropies back, exactly.

    Raises:
        ValueError: when the run's identity has changed, with the differences.
    """
    marker = read_marker(checkpoint)
    differences = compare_identity(marker["identity"], identity)
    if differences:
        raise ValueError(
            f"{checkpoint} belongs to a run with other settings:\n"
            + "\n".join(f"  - {line}" for line in differences)
            + "\nSet them back, or choose another run_dir (or resume=never with an empty one)."
        )
    loaded, _ = engine.ds.load_checkpoint(str(checkpoint), tag=ENGINE_TAG)
    raise_together(None if loaded else f"{checkpoint}: DeepSpeed found nothing to load")
    _restore_random_state(checkpoint, engine.layout.rank)
    if cache is not None:
        raise_together(_copy_cache(cache.load, checkpoint / _CACHE, engine.layout))
    threshold = marker.get("threshold")
    return Progress(
        step=marker["step"],
        tokens=marker["tokens"],
        threshold=KeptThreshold(**threshold) if threshold else None,
    )


def compare_identity(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """One line for each leaf that differs: its dotted name, the saved and the present value."""
    saved_leaves, current_leaves = dict(_leaves(saved)), dict(_leaves(current))
    names = saved_leaves.keys() | current_leaves.keys()
    return [
        f"{name}: was {saved_leaves.get(name)!r}, is {current_leaves.get(name)!r}"
        for name in sorted(names)
        if saved_leaves.get(name) != current_leaves.get(name)
    ]


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves += _leaves(value, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", list(value) if isinstance(value, tuple) else value))
    return leaves


def _save_random_state(folder: Path, rank: int) -> str | None:
    numpy_state: Any = np.random.get_state(legacy=False)
    state = {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
        "numpy_position": int(numpy_state["state"]["pos"]),
        "python": random.getstate(),
    }
    try:
        torch.save(state, folder / f"random_state-rank{rank:05d}.pt")
    except (OSError, RuntimeError) as error:
        return f"checkpoint {folder}: {error}"
    return None


def _copy_cache(copy: Callable[..., None], path: Path, layout: Layout) -> str | None:
    try:
        copy(path, rank=layout.rank, world_size=layout.world_size)
    except OSError as error:
        return f"{path}: {error.strerror}"
    return None


def _restore_random_state(folder: Path, rank: int) -> None:
    state = torch.load(folder / f"random_state-rank{rank:05d}.pt", weights_only=True)
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    keys = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, state["numpy_position"], 0, 0.0))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def _mark_and_publish(
    staging: Path, final: Path, *, progress: Progress, identity: dict[str, Any]
) -> None:
    files = {}
    for path in sorted(p for p in staging.rglob("*") if p.is_file()):
        _fsync(path)
        files[path.relative_to(staging).as_posix()] = path.stat().st_size
    marker = {
        "step": progress.step,
        "tokens": progress.tokens,
        "threshold": progress.threshold and asdict(progress.threshold),
        "identity": identity,
        "files": files,
    }
    with (staging / _MARKER).open("w", encoding="utf-8") as file:
        json.dump(marker, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _fsync(staging)
    if final.exists():  # left by a run that then went on from an older one
        final.rename(final.with_name(f".removed-{final.name}"))
    staging.rename(final)
    _fsync(final.parent)


def _prune(root: Path, *, keep_last: int) -> None:
    complete = sorted(path for path in root.glob("step-*") if (path / _MARKER).exists())
    for old in complete[:-keep_last]:
        # renamed first: a kill in the middle leaves nothing that looks whole
        doomed = old.with_name(f".removed-{old.name}")
        old.rename(doomed)
        shutil.rmtree(doomed)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
