"""The state of every random number generator of a rank, as plain data."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch


def random_state_path(checkpoint: Path, rank: int) -> Path:
    """Where a checkpoint stores that of a rank."""
    return checkpoint / f"random_state-rank{rank:05d}.pt"


def random_state() -> dict[str, Any]:
    """Of torch, CUDA, numpy and Python: only tensors and integers, loaded without running code."""
    numpy_state: Any = np.random.get_state(legacy=False)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
        "numpy_position": int(numpy_state["state"]["pos"]),
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore one."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    keys = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, state["numpy_position"], 0, 0.0))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
