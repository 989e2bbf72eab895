"""The averaged weights of a run in a checkpoint: one file for each rank."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.checkpoints.files import CheckpointFiles, only_data, read_state
from training.checkpoints.manifest import read_manifest
from training.checkpoints.reshard import must_reshard
from training.model.engine import Engine
from training.model.shadow import AveragedWeights
from training.ranks.dist import Layout

_FOLDER = "ema"


def save_average(files: CheckpointFiles, average: AveragedWeights, layout: Layout) -> None:
    """This rank's file; errors are kept in `files`."""
    folder = files.folder / _FOLDER
    files.makedirs(str(folder), exist_ok=True)
    state = {
        "shards": dict(average.shards),
        "shapes": {name: tuple(shape) for name, shape in average.shapes.items()},
        "aliases": average.aliases,
        "buffers": dict(average.buffers),
    }
    files.save(state, _file(folder, layout.rank))


def load_average(average: AveragedWeights, checkpoint: Path, engine: Engine) -> None:
    """Go on with the average of a checkpoint, or begin anew with its weights if it has none.

    It has none where `ema` was added on a resume.
    """
    manifest = read_manifest(checkpoint)
    if not _has_average(manifest):
        average.restart()
    elif must_reshard(manifest, engine.layout, zero_stage=engine.zero_stage):
        average.load_whole(read_average(checkpoint))
    else:
        average.load(read_state(_file(checkpoint / _FOLDER, engine.layout.rank))["shards"])


def read_average(checkpoint: Path) -> dict[str, Tensor]:
    """The averaged weights, whole, fp32, by the names of transformers, on the CPU.

    Raises:
        ValueError: for a checkpoint of a run without `ema`.
    """
    manifest = read_manifest(checkpoint)
    if not _has_average(manifest):
        raise ValueError(f"{checkpoint} has no averaged weights: its run was without ema")
    states = [
        _mapped(_file(checkpoint / _FOLDER, rank))
        for rank in range(manifest["layout"]["world_size"])
    ]
    first = states[0]
    whole = {
        name: _joined([state["shards"][name] for state in states], torch.Size(shape))
        for name, shape in first["shapes"].items()
    }
    tied = {alias: whole[name] for alias, name in first["aliases"].items()}
    return whole | tied | first["buffers"]


def _joined(shards: list[Tensor], shape: torch.Size) -> Tensor:
    """Without the padding that makes all shards alike."""
    return torch.cat([shard.flatten() for shard in shards])[: shape.numel()].view(shape)


def _mapped(path: Path) -> Any:
    """Read as it is needed: all ranks' files at once may not fit into memory."""
    with only_data(path):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.pt"


def _has_average(manifest: Mapping[str, Any]) -> bool:
    return any(name.startswith(f"{_FOLDER}/") for name in manifest["files"])
