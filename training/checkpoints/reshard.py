"""Resumes from a checkpoint on another number of ranks, by DeepSpeed's universal checkpoint.

ZeRO-3 partitions weights and optimizer state by the number of ranks. With the same number, whatever
its split between data and sequence, they are read as they are; with another they are merged first,
in a folder next to the checkpoints that is removed after the load.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from training.ranks.dist import Layout, broadcast_from_rank0, raise_together

LEFT_OVER = ".universal-*"
"""What a start that was killed while converting leaves next to the checkpoints."""
_POLL_SECONDS = 0.2


@contextmanager
def universal_copy(engine_folder: Path, root: Path, *, layout: Layout) -> Iterator[Path]:
    """DeepSpeed's files of a checkpoint in its universal form; every rank enters together.

    Args:
        engine_folder: DeepSpeed's folder within a checkpoint.
        root: folder of the checkpoints, where the copy is made.

    Yields:
        The folder that holds the copy, under the name of `engine_folder`.

    Raises:
        ValueError: on every rank when DeepSpeed's converter fails, with its last lines.
    """
    copy = root / broadcast_from_rank0(f".universal-{uuid.uuid4().hex}")
    error = None
    if layout.is_main:
        for left_over in root.glob(LEFT_OVER):
            shutil.rmtree(left_over)
        error = _convert(engine_folder, copy / engine_folder.name)
        copy.mkdir(exist_ok=True)
        (copy / "ended").touch()
    # A large model may take hours: no collective waits for it, since its timeout would end the run.
    while not (copy / "ended").exists():
        time.sleep(_POLL_SECONDS)
    try:
        raise_together(error)
        yield copy
    finally:
        dist.barrier()
        if layout.is_main:
            shutil.rmtree(copy, ignore_errors=True)


def is_of_other_ranks(manifest: Mapping[str, Any], layout: Layout) -> bool:
    """Whether a checkpoint must be resharded, by the content of its manifest."""
    return bool(manifest["layout"]["world_size"] != layout.world_size)


def load_universal(ds: Any, copy: Path, *, tag: str, strict: bool) -> bool:
    """Load it into a DeepSpeed engine, without two bugs of DeepSpeed 0.19.

    Its loader gives every parameter group the hyperparameters of the first one, so that norms
    would decay, and lets all parts of the optimizer count their steps in one tensor, so that
    Adam's step runs ahead (stage3.py, `load_hp_checkpoint_state_from_checkpoint_dir_stage3`).

    Args:
        strict: every weight of the model must be in the copy.
    """
    optimizer = ds.optimizer.optimizer
    settings = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    loaded, _ = ds.load_checkpoint(str(copy), tag=tag, load_module_strict=strict)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    for state in optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()
    return loaded is not None


def _convert(engine_folder: Path, out: Path) -> str | None:
    """Run DeepSpeed's converter; returns an error message, if any."""
    workers = str(max(1, min(8, (os.cpu_count() or 1) // 2)))
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(engine_folder), "--output_folder", str(out)]
    command += ["--num_extract_workers", workers, "--num_merge_workers", workers]
    print(f"{engine_folder.parent}: resharding for another number of ranks", file=sys.stderr)
    result = subprocess.run(command, capture_output=True, text=True, env=_environment_of_one())
    if result.returncode:
        last_lines = "\n".join((result.stdout + result.stderr).splitlines()[-5:])
        return f"{engine_folder}: DeepSpeed's ds_to_universal failed:\n{last_lines}"
    return None


def _environment_of_one() -> dict[str, str]:
    """Without the variables that would make the converter act as a rank."""
    ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in os.environ.items() if name not in ranks}
