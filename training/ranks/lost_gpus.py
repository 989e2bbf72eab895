"""Refuses to compute on the CPU of a machine whose GPUs cannot be used."""

from __future__ import annotations

import os
from pathlib import Path


def refuse_lost_gpus(devices: Path = Path("/dev")) -> None:
    """Where torch finds no GPU: are some there?

    Not whether CUDA_VISIBLE_DEVICES asks for some: DeepSpeed's launcher numbers the processes that
    it starts on CPUs in it, too.

    Raises:
        ValueError: when there are; the run would only be a hundred times slower, without a word.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "unset").strip() in ("", "-1"):
        return
    if there := ", ".join(sorted(path.name for path in devices.glob("nvidia[0-9]*"))):
        raise ValueError(
            f"{devices} has {there}, but torch finds no GPU: is this torch built for CUDA, and is "
            "the driver new enough for it (nvidia-smi)? To use the CPU, set CUDA_VISIBLE_DEVICES "
            "to nothing"
        )
