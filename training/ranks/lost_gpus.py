"""Refuses to compute on the CPU of a machine whose GPUs cannot be used."""

from __future__ import annotations

import os
from pathlib import Path


def refuse_lost_gpus(devices: Path = Path("/dev")) -> None:
    """Where torch finds no GPU: were some asked for, or are some there?

    Raises:
        ValueError: when there are; the run would only be a hundred times slower, without a word.
    """
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is not None and asked.strip() in ("", "-1"):
        return
    there = ", ".join(sorted(path.name for path in devices.glob("nvidia[0-9]*")))
    if asked or there:
        found = f"CUDA_VISIBLE_DEVICES is {asked}" if asked else f"{devices} has {there}"
        raise ValueError(
            f"{found}, but torch finds no GPU: is this torch built for CUDA, and is the driver "
            "new enough for it (nvidia-smi)? To use the CPU, set CUDA_VISIBLE_DEVICES to nothing"
        )
