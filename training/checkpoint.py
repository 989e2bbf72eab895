"""Checkpoints that are whole or absent: staged, marked complete, renamed; and resumed exactly."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from training.checkpoint_files import (
    CheckpointFiles,
    FileRecord,
    fsync_path,
    only_data,
    read_state,
    record_file,
)
from training.checkpoint_marker import read_marker, write_marker
from training.config import Checkpoint
from training.dist import Layout, agree, raise_together
from training.engine import Engine
from training.entropy_cache import EntropyCache
from training.random_state import random_state, random_state_path, set_random_state
from training.relayout import LEFT_OVER, is_of_other_ranks, load_universal, universal_copy
from training.retention import prune
from training.run_identity import refuse_differences
from training.token_dropout import KeptThreshold

ENGINE_TAG = "zero3"
"""Folder of DeepSpeed's own files within a checkpoint."""
_CACHE = "entropy_cache.f16"


class SaveFailed(ValueError):
    """A checkpoint could not be written; what was there before is untouched."""


@dataclass(frozen=True)
class Progress:
    """Where the run is: everything else of the future follows from it and the recipe."""

    step: int
    """Optimizer steps done."""
    tokens: int
    """Tokens of documents trained, padding left out."""
    threshold: KeptThreshold | None = None
    """For recipes whose next step drops by one that was found before."""
    heldout_loss: float | None = None
    """Of the newest evaluation, in nats per token; it decides which checkpoints are the best."""
    epoch_digest: int = 0
    """Of the samples of the epoch that is under way (`epoch_proof`)."""
    recent_losses: tuple[float, ...] = ()
    """Of the steps that a next one is compared with (`loss_guard`)."""
    recent_grad_norms: tuple[float, ...] = ()
    """Likewise."""
    left_out: tuple[int, ...] = ()
    """Steps, from 0, whose batch is gone through without an update."""
    num_bad_in_row: int = 0
    """Steps before this one that were skipped or rolled back."""


def save_checkpoint(
    engine: Engine,
    root: Path,
    *,
    progress: Progress,
    identity: dict[str, Any],
    settings: Checkpoint,
    cache: EntropyCache | None = None,
) -> Path:
    """Write `root/step-<step>`; it appears under that name only when every rank has finished.

    Args:
        identity: what a resume must find unchanged: recipe, data, layout.
        settings: which older checkpoints stay; the others are removed afterwards.
        cache: the run's entropies, copied as they are now.

    Raises:
        SaveFailed: the same on every rank when anything failed on any of them, with the path,
            the reason and, where the disk is full, the bytes needed and free.
    """
    final = root / f"step-{progress.step:08d}"
    staging = root / f".staging-{final.name}"
    layout = engine.layout
    files = CheckpointFiles(staging)
    if layout.is_main:
        with files.noting_errors(root):
            _make_room(root, staging)
    _compare(files, final, layout)
    engine.watchdog.enter("save: state", slow=True)
    _write_own_files(engine, files, cache)
    written = _compare(files, final, layout)
    engine.watchdog.enter("save: checksums", slow=True)
    _record_the_rest(files, written, layout)
    recorded = _compare(files, final, layout)
    engine.watchdog.enter("save: publish", slow=True)
    if layout.is_main:
        content = {
            **asdict(progress),
            "identity": identity,
            "layout": {"world_size": layout.world_size, "sequence_parallel_size": layout.sp_size},
        }
        with files.noting_errors(final):
            write_marker(staging, content, files=recorded)
            _publish(staging, final)
    _compare(files, final, layout)
    engine.watchdog.enter("save: prune", slow=True)
    if layout.is_main:
        prune(root, newest_step=progress.step, settings=settings)
    dist.barrier()  # the watchdog has less patience with ranks that wait in a step
    return final


def load_checkpoint(
    engine: Engine,
    checkpoint: Path,
    *,
    identity: dict[str, Any],
    accepted: Collection[str] = (),
    cache: EntropyCache | None = None,
) -> Progress:
    """Bring weights, optimizer, random state and the run's entropies back.

    Exactly on the same number of ranks; within rounding of the losses on another (`relayout`), for
    which the engine was built with `loads_universal`.

    Args:
        accepted: dotted names of what may differ all the same.

    Raises:
        ValueError: when the run's identity has changed, with the differences, or when a file
            holds anything but data.
    """
    marker = read_marker(checkpoint)
    refuse_differences(checkpoint, marker["identity"], identity, accepted=accepted)
    if is_of_other_ranks(marker, engine.layout):
        _load_relaid(engine, checkpoint)
    else:
        _load_engine(engine, checkpoint)
    if cache is not None:
        raise_together(_copy_cache(cache.load, checkpoint / _CACHE, engine.layout))
    threshold = marker["threshold"]
    return Progress(
        step=marker["step"],
        tokens=marker["tokens"],
        threshold=KeptThreshold(**threshold) if threshold else None,
        heldout_loss=marker["heldout_loss"],
        epoch_digest=marker["epoch_digest"],
        recent_losses=tuple(marker["recent_losses"]),
        recent_grad_norms=tuple(marker["recent_grad_norms"]),
        left_out=tuple(marker["left_out"]),
        num_bad_in_row=marker["num_bad_in_row"],
    )


def _make_room(root: Path, staging: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    patterns = (".staging-*", ".removed-*", LEFT_OVER)
    for left_over in (found for pattern in patterns for found in root.glob(pattern)):
        shutil.rmtree(left_over)
    staging.mkdir()


def _compare(files: CheckpointFiles, final: Path, layout: Layout) -> dict[str, FileRecord]:
    """The records of all ranks; every rank stops here when one of them met an error."""
    every: list[Any] = [None] * layout.world_size
    dist.all_gather_object(
        every, (files.errors, files.is_disk_full, files.num_bytes, files.records)
    )
    failed = [f"rank {rank}: {errors[0]}" for rank, (errors, *_) in enumerate(every) if errors]
    if failed:
        free_bytes = None
        if layout.is_main:
            shutil.rmtree(files.folder, ignore_errors=True)
            free_bytes = shutil.disk_usage(_existing(final)).free
        free_bytes = agree(free_bytes)
        message = f"checkpoint {final} was not saved: {failed[0]}"
        if len(failed) > 1:
            message += f" (and {len(failed) - 1} other ranks failed)"
        if any(is_disk_full for _, is_disk_full, *_ in every):
            needed_bytes = sum(num_bytes for _, _, num_bytes, _ in every)
            message += (
                f". It needs {needed_bytes:,} bytes; now that the unfinished one is removed, "
                f"{free_bytes:,} are free there"
            )
        raise SaveFailed(f"{message}. Older checkpoints are as they were")
    return {name: record for *_, records in every for name, record in records.items()}


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _write_own_files(engine: Engine, files: CheckpointFiles, cache: EntropyCache | None) -> None:
    layout, staging = engine.layout, files.folder
    engine.ds.checkpoint_engine = files
    # It would copy scripts that nobody here needs, and raise on one rank when the disk is full.
    engine.ds._copy_recovery_script = lambda _folder: None
    engine.ds.save_checkpoint(str(staging), tag=ENGINE_TAG, save_latest=False)
    files.save(random_state(), random_state_path(staging, layout.rank))
    if cache is not None:
        files.num_bytes += cache.num_bytes if layout.is_main else 0
        with files.noting_errors(staging / _CACHE):
            cache.save(staging / _CACHE, rank=layout.rank, world_size=layout.world_size)


def _record_the_rest(
    files: CheckpointFiles, written: dict[str, FileRecord], layout: Layout
) -> None:
    """Checksums of files that several ranks wrote, or others than ourselves, shared out."""
    staging, found = files.folder, None
    if layout.is_main:
        found = {p.relative_to(staging).as_posix() for p in staging.rglob("*") if p.is_file()}
    found = agree(found)
    assert found is not None
    for unseen in sorted(written.keys() - found):
        files.errors.append(f"{staging / unseen}: rank 0 cannot see it; is the disk a shared one?")
    for name in sorted(found - written.keys())[layout.rank :: layout.world_size]:
        with files.noting_errors(staging / name):
            files.records[name] = record_file(staging / name, durable=True)


def _publish(staging: Path, final: Path) -> None:
    doomed = final.with_name(f".removed-{final.name}")
    if final.exists():  # left by a run that then went on from an older one
        final.rename(doomed)
    staging.rename(final)
    fsync_path(final.parent)
    shutil.rmtree(doomed, ignore_errors=True)


def _load_engine(engine: Engine, checkpoint: Path) -> None:
    """Each rank's files are read before DeepSpeed asks for them, so none fails in its midst."""
    rank = engine.layout.rank
    own_files = (checkpoint / ENGINE_TAG).glob(f"*zero_pp_rank_{rank}_*.pt")
    read = _read_together([*own_files, random_state_path(checkpoint, rank)])
    engine.ds.checkpoint_engine = CheckpointFiles(checkpoint, loaded=read)
    found, _ = engine.ds.load_checkpoint(str(checkpoint), tag=ENGINE_TAG)
    raise_together(None if found else f"{checkpoint}: DeepSpeed found nothing to load")
    set_random_state(read[random_state_path(checkpoint, rank)])


def _read_together(paths: list[Path], *, keeps: bool = True) -> dict[Path, Any]:
    """Contents by path, or nothing when they are read only to be sure that they hold no code."""
    read: dict[Path, Any] = {}
    error = None
    try:
        for path in paths:
            state = read_state(path)
            if keeps:
                read[path] = state
    except ValueError as refused:
        error = str(refused)
    raise_together(error)
    return read


def _load_relaid(engine: Engine, checkpoint: Path) -> None:
    """DeepSpeed's files, put together for another number of ranks.

    The random states of the ranks are left aside: no number of the run is drawn from them.
    """
    layout = engine.layout
    every_file = sorted((checkpoint / ENGINE_TAG).glob("*.pt"))
    # the converter is a process of its own, in which DeepSpeed loads whatever there is
    _read_together(every_file[layout.rank :: layout.world_size], keeps=False)
    with (
        universal_copy(checkpoint / ENGINE_TAG, checkpoint.parent, layout=layout) as copy,
        only_data(copy),
    ):
        found = load_universal(engine.ds, copy, tag=ENGINE_TAG)
        raise_together(None if found else f"{checkpoint}: DeepSpeed found nothing to load")


def _copy_cache(copy: Callable[..., None], path: Path, layout: Layout) -> str | None:
    try:
        copy(path, rank=layout.rank, world_size=layout.world_size)
    except OSError as error:
        return f"{path}: {error.strerror}"
    return None
