"""Which rank keeps the others waiting, and the peak memory of each."""

from __future__ import annotations

import resource
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from training.ranks.dist import Layout
from training.ranks.phase_memory import PhaseMemory, by_phase

REPORT_EVERY_STEPS = 50
_GIB = 2**30


class RankMeter:
    """Adds up the time a rank spends alone in a step, before it first meets the others.

    That is data, Python, and whatever else its machine is slow at. The delay of a slow GPU falls
    into ZeRO's own collectives and does not show here.
    """

    def __init__(self, layout: Layout, memory: PhaseMemory) -> None:
        self._layout, self._memory = layout, memory
        self._alone_seconds = self._step_seconds = 0.0
        self._num_steps = 0

    def add(self, *, alone_seconds: float, step_seconds: float) -> None:
        """Count one step."""
        self._alone_seconds += alone_seconds
        self._step_seconds += step_seconds
        self._num_steps += 1

    def report(self) -> dict[str, Any] | None:
        """Of the steps since the last report, equal on every rank; None until there are enough.

        Every rank calls it after every step. Gathers fourteen numbers per rank.
        """
        if self._num_steps < REPORT_EVERY_STEPS:
            return None
        own = torch.tensor(
            [
                self._alone_seconds / self._num_steps,
                self._step_seconds / self._num_steps,
                peak_memory_gib(self._memory),
                *self._memory.take(),
            ],
            dtype=torch.float64,
            device=self._layout.device,
        )
        gathered = [torch.empty_like(own) for _ in range(self._layout.world_size)]
        dist.all_gather(gathered, own)
        self._alone_seconds = self._step_seconds = 0.0
        self._num_steps = 0
        ranks = [rank.tolist() for rank in gathered]
        return summarise(ranks) | by_phase([rank[3:] for rank in ranks])


def summarise(ranks: list[list[float]]) -> dict[str, Any]:
    """By rank: seconds alone, seconds of a step, peak memory in GiB."""
    alone = [rank[0] for rank in ranks]
    memory = [rank[2] for rank in ranks]
    slowest = max(range(len(ranks)), key=lambda rank: alone[rank])
    late_seconds = alone[slowest] - median(alone)
    return {
        "slowest_rank": slowest,
        "late_seconds": late_seconds,
        "late_share": late_seconds / max(ranks[slowest][1], 1e-9),
        "peak_memory_gib": max(memory),
        "peak_memory_rank": max(range(len(ranks)), key=lambda rank: memory[rank]),
    }


def peak_memory_gib(memory: PhaseMemory) -> float:
    """Of this process so far: the allocator's on a GPU, the resident set elsewhere."""
    if memory.is_measured:
        return memory.largest_gib
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GIB
