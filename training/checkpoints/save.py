"""Writes checkpoints that are complete or absent: staged, hashed, marked complete, renamed."""

from __future__ import annotations

import shutil
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist

from common.checksum import FileRecord, record_file
from common.durable import fsync_path
from training.checkpoints.ema_files import save_average
from training.checkpoints.files import CACHE_FILE, ENGINE_TAG, CheckpointFiles
from training.checkpoints.manifest import write_manifest
from training.checkpoints.progress import Progress
from training.checkpoints.random_state import random_state, random_state_path
from training.checkpoints.reshard import LEFT_OVER
from training.checkpoints.retention import prune
from training.config.sections import Checkpoint
from training.model.engine import Engine
from training.model.shadow import AveragedWeights
from training.ranks.dist import Layout, broadcast_from_rank0
from training.regularisers.entropy_cache import EntropyCache


class SaveFailed(ValueError):
    """A checkpoint could not be written; existing ones are untouched.

    The message has the path, the reason and, if the disk is full, the bytes needed and free.
    """


class CheckpointSave:
    """One save of `root/step-<step>`, which appears when every rank has finished.

    It holds the run as it was at construction. Every rank constructs it and calls `publish`; each
    raises `SaveFailed`, the same on every rank, when anything failed on any of them.
    """

    def __init__(
        self,
        engine: Engine,
        root: Path,
        *,
        progress: Progress,
        identity: dict[str, Any],
        cache: EntropyCache | None = None,
        average: AveragedWeights | None = None,
        in_background: bool = False,
    ) -> None:
        """Write the files; or only copy them to memory, for a thread that writes them.

        Args:
            identity: what a resume must find unchanged: recipe, data, layout.
            cache: the run's entropies, copied to disk as they are now.
            average: of the weights.
            in_background: training may continue before the files are written.
        """
        self.progress = progress
        self._final = root / f"step-{progress.step:08d}"
        self._identity, self._engine = identity, engine
        self._files = CheckpointFiles(root / f".staging-{self._final.name}", defers=in_background)
        if engine.layout.is_main:
            with self._files.noting_errors(root):
                _make_room(root, self._files.folder)
        self._compare()
        engine.watchdog.enter("save: state", slow=True)
        _write_own_files(engine, self._files, cache)
        if average is not None:
            save_average(self._files, average, engine.layout)
        self._compare()  # before it a rank may still read entropies that the next step changes
        self._thread: threading.Thread | None = None
        if in_background:
            write = self._files.write_deferred
            # daemon: a process that ends early leaves no checkpoint
            self._thread = threading.Thread(target=write, name="checkpoint", daemon=True)
            self._thread.start()

    @property
    def is_written(self) -> bool:
        """Whether `publish` would not wait for this rank."""
        return self._thread is None or not self._thread.is_alive()

    def publish(self, settings: Checkpoint) -> Path:
        """Wait for the files of all ranks, publish the checkpoint, prune older ones.

        Args:
            settings: which older checkpoints stay.
        """
        files, final, layout = self._files, self._final, self._engine.layout
        watchdog = self._engine.watchdog
        watchdog.enter("save: files", slow=True)
        if self._thread:
            self._thread.join()
        written = self._compare()
        watchdog.enter("save: checksums", slow=True)
        _record_the_rest(files, written, layout)
        recorded = self._compare()
        watchdog.enter("save: publish", slow=True)
        if layout.is_main:
            content = {
                **asdict(self.progress),
                "identity": self._identity,
                "layout": {
                    "world_size": layout.world_size,
                    "sequence_parallel_size": layout.sp_size,
                    "zero_stage": self._engine.zero_stage,
                },
            }
            with files.noting_errors(final):
                write_manifest(files.folder, content, files=recorded)
                _publish(files.folder, final)
        self._compare()
        watchdog.enter("save: prune", slow=True)
        if layout.is_main:
            prune(final.parent, newest_step=self.progress.step, settings=settings)
        dist.barrier()  # the watchdog gives ranks that wait in a step less time
        return final

    def _compare(self) -> dict[str, FileRecord]:
        return _compare(self._files, self._final, self._engine.layout)


def _make_room(root: Path, staging: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    patterns = (".staging-*", ".removed-*", LEFT_OVER)
    for left_over in (found for pattern in patterns for found in root.glob(pattern)):
        shutil.rmtree(left_over)
    staging.mkdir()


def _compare(files: CheckpointFiles, final: Path, layout: Layout) -> dict[str, FileRecord]:
    """The records of all ranks; every rank raises when one of them met an error."""
    every: list[Any] = [None] * layout.world_size
    dist.all_gather_object(
        every, (files.errors, files.is_disk_full, sum(files.sizes.values()), files.records)
    )
    failed = [f"rank {rank}: {errors[0]}" for rank, (errors, *_) in enumerate(every) if errors]
    if failed:
        free_bytes = None
        if layout.is_main:
            shutil.rmtree(files.folder, ignore_errors=True)
            free_bytes = shutil.disk_usage(_existing(final)).free
        free_bytes = broadcast_from_rank0(free_bytes)
        message = f"checkpoint {final} was not saved: {failed[0]}"
        if len(failed) > 1:
            message += f" (and {len(failed) - 1} other ranks failed)"
        if any(is_disk_full for _, is_disk_full, *_ in every):
            needed_bytes = sum(num_bytes for _, _, num_bytes, _ in every)
            message += (
                f". It needs {needed_bytes:,} bytes; {free_bytes:,} are free there after removing "
                "the unfinished one"
            )
        raise SaveFailed(f"{message}. Older checkpoints are untouched")
    return {name: record for *_, records in every for name, record in records.items()}


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _write_own_files(engine: Engine, files: CheckpointFiles, cache: EntropyCache | None) -> None:
    layout, staging = engine.layout, files.folder
    engine.ds.checkpoint_engine = files
    # It would copy scripts that are not needed, and raise on one rank when the disk is full.
    engine.ds._copy_recovery_script = lambda _folder: None
    # what is frozen is the base's, which a resume knows by its fingerprint
    engine.ds.save_checkpoint(
        str(staging), tag=ENGINE_TAG, save_latest=False, exclude_frozen_parameters=True
    )
    files.save(random_state(), random_state_path(staging, layout.rank))
    if cache is not None:
        files.sizes[CACHE_FILE] = cache.num_bytes if layout.is_main else 0
        with files.noting_errors(staging / CACHE_FILE):
            cache.save(staging / CACHE_FILE, rank=layout.rank, world_size=layout.world_size)


def _record_the_rest(
    files: CheckpointFiles, written: dict[str, FileRecord], layout: Layout
) -> None:
    """Checksums of files that several ranks or other code wrote, split among ranks."""
    staging, found = files.folder, None
    if layout.is_main:
        found = {p.relative_to(staging).as_posix() for p in staging.rglob("*") if p.is_file()}
    found = broadcast_from_rank0(found)
    assert found is not None
    for unseen in sorted(written.keys() - found):
        files.errors.append(f"{staging / unseen}: rank 0 cannot see it; is the disk shared?")
    for name in sorted(found - written.keys())[layout.rank :: layout.world_size]:
        with files.noting_errors(staging / name):
            files.records[name] = record_file(staging / name, durable=True)


def _publish(staging: Path, final: Path) -> None:
    doomed = final.with_name(f".removed-{final.name}")
    if final.exists():  # left by a run that then resumed from an older one
        final.rename(doomed)
    staging.rename(final)
    fsync_path(final.parent)
    shutil.rmtree(doomed, ignore_errors=True)
