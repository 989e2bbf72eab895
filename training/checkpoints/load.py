"""Restores a checkpoint, exactly and without running any code that its files may contain."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.checkpoints.ema_files import load_average
from training.checkpoints.files import (
    CACHE_FILE,
    ENGINE_TAG,
    CheckpointFiles,
    only_data,
    read_state,
)
from training.checkpoints.identity import is_by_another_loss, refuse_differences
from training.checkpoints.manifest import read_manifest, run_key_of
from training.checkpoints.progress import Progress
from training.checkpoints.random_state import random_state_path, set_random_state
from training.checkpoints.reshard import (
    keeping_settings,
    load_universal,
    must_reshard,
    universal_copy,
)
from training.model.engine import Engine
from training.model.shadow import AveragedWeights
from training.ranks.dist import Layout, raise_together, together
from training.regularisers.base import SavedThreshold
from training.regularisers.entropy_cache import EntropyCache


def load_checkpoint(
    engine: Engine,
    checkpoint: Path,
    *,
    identity: dict[str, Any],
    accepted: Collection[str] = (),
    cache: EntropyCache | None = None,
    average: AveragedWeights | None = None,
) -> Progress:
    """Restore weights, optimizer, random state and the run's entropies.

    Exactly on the same number of ranks and stage of ZeRO; within rounding of the losses on others
    (`reshard`), for which the engine was built with `loads_universal`. What was best so far is
    forgotten where it was so by another loss.

    Args:
        accepted: dotted names of what may differ.

    Raises:
        ValueError: when the run's identity has changed, with the differences, or when a file
            contains anything but data.
    """
    manifest = read_manifest(checkpoint)
    refuse_differences(checkpoint, manifest["identity"], identity, accepted=accepted)
    if must_reshard(manifest, engine.layout, zero_stage=engine.zero_stage):
        _load_resharded(engine, checkpoint)
    else:
        _load_engine(engine, checkpoint)
    engine.ds.optimizer.clip_grad = engine.ds.gradient_clipping()  # at stage 1 the checkpoint's
    if cache is not None:
        raise_together(_copy_cache(cache.load, checkpoint / CACHE_FILE, engine.layout))
    if average is not None:
        together(lambda: load_average(average, checkpoint, engine))
    return progress_of(manifest, identity)


def progress_of(manifest: dict[str, Any], identity: dict[str, Any]) -> Progress:
    """Where a checkpoint is, for a run of this identity."""
    threshold = manifest["threshold"]
    progress = Progress(
        step=manifest["step"],
        tokens=manifest["tokens"],
        threshold=SavedThreshold(**threshold) if threshold else None,
        heldout_loss=manifest["heldout_loss"],
        # checkpoints of older versions do not have them
        evaluated_step=manifest.get("evaluated_step"),
        best_loss=manifest.get("best_loss"),
        best_step=manifest.get("best_step"),
        num_since_best=manifest.get("num_since_best", 0),
        epoch_digest=manifest["epoch_digest"],
        recent_losses=tuple(manifest["recent_losses"]),
        recent_grad_norms=tuple(manifest["recent_grad_norms"]),
        left_out=tuple(manifest["left_out"]),
        num_bad_in_row=manifest["num_bad_in_row"],
        run_key=run_key_of(manifest),
    )
    if not is_by_another_loss(manifest["identity"], identity):
        return progress
    # evaluated_step stays: metrics.jsonl has that evaluation, by the other loss
    return replace(progress, heldout_loss=None, best_loss=None, best_step=None, num_since_best=0)


def _load_engine(engine: Engine, checkpoint: Path) -> None:
    """Each rank's files are read before DeepSpeed asks for them, so that none fails midway."""
    rank = engine.layout.rank
    folder = checkpoint / ENGINE_TAG
    is_sharded = engine.zero_stage == 3
    # at stage 1 one file is for all ranks
    own_files = [*folder.glob(f"*zero_pp_rank_{rank}_*.pt"), *folder.glob("mp_rank_*.pt")]
    read = _read_together([*own_files, random_state_path(checkpoint, rank)])
    engine.ds.checkpoint_engine = CheckpointFiles(checkpoint, loaded=read)
    # a run that started from a resharded checkpoint may roll back to one of its own
    engine.ds._config.load_universal_checkpoint = False
    # one of its optimizers prints a name
    with redirect_stdout(io.StringIO()), keeping_settings(engine.ds.optimizer.optimizer):
        found, _ = engine.ds.load_checkpoint(
            str(checkpoint),
            tag=ENGINE_TAG,
            load_module_strict=is_sharded and not engine.has_frozen,
        )
    raise_together(None if found else f"{checkpoint}: DeepSpeed found nothing to load")
    if not is_sharded:  # weights are not saved
        engine.ds.optimizer.update_lp_params()
    set_random_state(read[random_state_path(checkpoint, rank)])


def _read_together(paths: list[Path], *, keeps: bool = True) -> dict[Path, Any]:
    """Contents by path, or nothing when they are read only to check that they contain no code."""
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


def _load_resharded(engine: Engine, checkpoint: Path) -> None:
    """DeepSpeed's files, resharded.

    The random states of the ranks are ignored: no number of the run is drawn from them.
    """
    layout = engine.layout
    every_file = sorted((checkpoint / ENGINE_TAG).glob("*.pt"))
    # the converter is a separate process, in which DeepSpeed loads whatever it finds
    _read_together(every_file[layout.rank :: layout.world_size], keeps=False)
    with (
        universal_copy(
            checkpoint / ENGINE_TAG,
            checkpoint.parent,
            layout=layout,
            zero_stage=engine.zero_stage,
        ) as copy,
        only_data(copy),
    ):
        engine.ds._config.load_universal_checkpoint = True
        found = load_universal(engine.ds, copy, tag=ENGINE_TAG, strict=not engine.has_frozen)
        raise_together(None if found else f"{checkpoint}: DeepSpeed found nothing to load")


def _copy_cache(copy: Callable[..., None], path: Path, layout: Layout) -> str | None:
    try:
        copy(path, rank=layout.rank, world_size=layout.world_size)
    except OSError as error:
        return f"{path}: {error.strerror}"
    return None
