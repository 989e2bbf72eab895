"""The hardware that a plan is for; without what the planner loads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """The hardware of the run."""

    num_gpus: int
    gpu_gib: float
    gpus_per_node: int = 8
    host_gib: float | None = None
    """Memory of a node; None skips the comparison."""
    gpu_tflops: float = 989.0
    """Dense bf16 of a GPU; 989 is the H100's in NVIDIA's data sheet."""
    hfu: float = 0.4
    """Share of this peak that all matrix products reach, recomputed ones too: hardware FLOPs
    utilisation, which a run logs as `hfu`."""
    margin_frac: float = 0.1
    """Share of a GPU that must stay free: fragments of the allocator, and the forecast's error."""
    corpus_tokens: int | None = None
    """Of an epoch; None reads the pack."""

    @property
    def ranks_per_node(self) -> int:
        return min(self.num_gpus, self.gpus_per_node)
