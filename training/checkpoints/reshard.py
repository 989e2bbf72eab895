"""Resumes on another number of ranks, or at another stage of ZeRO, by a universal checkpoint.

ZeRO partitions the optimizer's state, and at stage 3 weights, by the number of ranks. With the same
number and stage, whatever the split between data and sequence, parts are read as they are; with
another they are merged first by DeepSpeed's converter, in a folder next to the checkpoints that is
removed after the load.
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

import deepspeed
import torch
import torch.distributed as dist

from training.checkpoints.files import read_state
from training.ranks.dist import Layout, broadcast_from_rank0, raise_together

LEFT_OVER = ".universal-*"
"""What a start that was killed while converting leaves next to the checkpoints."""
_POLL_SECONDS = 0.2
_OF_STAGE_1, _OF_STAGE_3 = "mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"
"""What DeepSpeed calls the file that it reads numbers of steps and ranks from."""


@contextmanager
def universal_copy(
    engine_folder: Path, root: Path, *, layout: Layout, zero_stage: int
) -> Iterator[Path]:
    """DeepSpeed's files of a checkpoint in its universal form; every rank enters together.

    Args:
        engine_folder: DeepSpeed's folder within a checkpoint.
        root: folder of the checkpoints, where the copy is made.
        zero_stage: of the engine that is to load it.

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
        if error is None:
            _adapt(copy / engine_folder.name, zero_stage)
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


def must_reshard(manifest: Mapping[str, Any], layout: Layout, *, zero_stage: int) -> bool:
    """Whether the parts of a checkpoint are not those of a run, by the content of its manifest."""
    saved = manifest["layout"]
    # checkpoints of older versions do not say their stage
    parts = saved["world_size"], saved.get("zero_stage", 3)
    return bool(parts != (layout.world_size, zero_stage))


@contextmanager
def keeping_settings(optimizer: Any) -> Iterator[None]:
    """Within it a checkpoint is loaded, of whose optimizer only the state is taken.

    Its settings are those of the recipe, which a resume may change where that is accepted, and of
    the optimizer itself: with offload it is another one, which has other settings and counts its
    steps in a number.
    """
    settings = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    yield
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    counts_in_tensors = isinstance(optimizer, torch.optim.Adam)
    for weight, state in optimizer.state.items():
        if (step := state.get("step")) is None:
            continue
        # fused Adam needs it beside the weight, and each weight its own
        own_step = torch.tensor(float(step), device=weight.device)
        state["step"] = own_step if counts_in_tensors else int(step)


def load_universal(ds: Any, copy: Path, *, tag: str, strict: bool) -> bool:
    """Load it into a DeepSpeed engine, without two bugs of DeepSpeed 0.19.

    At stage 3 its loader gives every parameter group the hyperparameters of the first one, so that
    norms would decay, and lets all parts of the optimizer count their steps in one tensor, so that
    Adam's step runs ahead (stage3.py, `load_hp_checkpoint_state_from_checkpoint_dir_stage3`).

    Args:
        strict: every weight of the model must be in the copy.
    """
    with keeping_settings(ds.optimizer.optimizer):
        loaded, _ = ds.load_checkpoint(str(copy), tag=tag, load_module_strict=strict)
    return loaded is not None


def _convert(engine_folder: Path, out: Path) -> str | None:
    """Run DeepSpeed's converter; returns an error message, if any."""
    workers = str(max(1, min(8, (os.cpu_count() or 1) // 2)))
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(engine_folder), "--output_folder", str(out)]
    command += ["--num_extract_workers", workers, "--num_merge_workers", workers]
    command += ["--inject_missing_state"]  # of tensor parallelism, which stage 1 asks for
    print(f"{engine_folder.parent}: resharding for other ranks or ZeRO stage", file=sys.stderr)
    result = subprocess.run(command, capture_output=True, text=True, env=_environment_of_one())
    if result.returncode:
        last_lines = "\n".join((result.stdout + result.stderr).splitlines()[-5:])
        return f"{engine_folder}: DeepSpeed's ds_to_universal failed:\n{last_lines}"
    return None


def _adapt(folder: Path, zero_stage: int) -> None:
    """Where the stage is another, whose loader expects the same numbers in other places."""
    names = (_OF_STAGE_3, _OF_STAGE_1)
    wanted, other = names if zero_stage == 3 else names[::-1]
    if (folder / wanted).exists():
        return
    (folder / other).rename(folder / wanted)
    path = folder / "zero" / "optimizer_state.pt"
    state = read_state(path)
    weights = [moment.parent for moment in path.parent.glob("*/exp_avg.pt")]
    if zero_stage == 3:
        step = read_state(weights[0] / "step.pt")
        groups = state["param_groups"]
        state["optimizer_state_dict"] = {"state": {0: {"step": step}}, "param_groups": groups}
        torch.save(state, path)
    else:
        step = state["optimizer_state_dict"]["state"][0]["step"]
        for weight in weights:
            for path_of_one in weight.glob("*.pt"):
                torch.save({"param": read_state(path_of_one)}, path_of_one)
            torch.save(step, weight / "step.pt")
        torch.save(state | {"ds_version": deepspeed.__version__}, path)


def _environment_of_one() -> dict[str, str]:
    """Without the variables that would make the converter act as a rank."""
    ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in os.environ.items() if name not in ranks}
