"""Operators that give the same bits in every run."""

from __future__ import annotations

import os

import torch


def choose_determinism(kind: str) -> None:
    """For all operators of this process from now on, before any of them runs.

    Args:
        kind: strict or fast, as in a recipe.
    """
    if kind == "strict":
        # cuBLAS reads it when it starts; without it torch refuses its products in this mode
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(kind == "strict")
    # torch would also fill memory that nothing has been written to yet
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
