"""The most memory of a GPU that each phase of training took, and how often it was short."""

from __future__ import annotations

from typing import Literal, get_args

import torch

Phase = Literal["forward", "backward", "update", "probe", "save"]
PHASES: tuple[Phase, ...] = get_args(Phase)
_GIB = 2**30


class PhaseMemory:
    """Peaks of torch's allocator between calls of `enter`; elsewhere than on CUDA it does nothing.

    No call waits for the device: allocations happen on the host.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._phase: Phase | None = None
        self._peaks: dict[Phase, tuple[int, int]] = {}
        self._largest = 0

    @property
    def is_measured(self) -> bool:
        """Whether the device tells."""
        return self._device.type == "cuda"

    def enter(self, phase: Phase) -> None:
        """From now on; what lies between phases counts for the one before.

        `probe` is any pass without gradient, evaluations too.
        """
        if self.is_measured:
            self._close()
            self._phase = phase

    def take(self) -> list[float]:
        """GiB allocated and reserved by each of `PHASES`, since the last call; 0 where none was.

        Last, how often since the start the allocator had to give its cache back and try again.
        """
        if not self.is_measured:
            return [0.0] * (2 * len(PHASES) + 1)
        self._close()
        taken, self._peaks = self._peaks, {}
        gib = [size / _GIB for phase in PHASES for size in taken.get(phase, (0, 0))]
        return [*gib, float(torch.cuda.memory_stats(self._device).get("num_alloc_retries", 0))]

    @property
    def largest_gib(self) -> float:
        """Allocated at most, since the start."""
        self._close()
        return self._largest / _GIB

    def _close(self) -> None:
        peak = torch.cuda.max_memory_allocated(self._device)
        self._largest = max(self._largest, peak)
        if self._phase is not None:
            of_both = (peak, torch.cuda.max_memory_reserved(self._device))
            before = self._peaks.get(self._phase, (0, 0))
            self._peaks[self._phase] = (max(before[0], of_both[0]), max(before[1], of_both[1]))
        torch.cuda.reset_peak_memory_stats(self._device)


def by_phase(ranks: list[list[float]]) -> dict[str, float]:
    """Of what each rank's `take` gave: the most of any, by name, and all retries."""
    names = [f"{phase}_{kind}_gib" for phase in PHASES for kind in ("allocated", "reserved")]
    largest = [max(column) for column in zip(*ranks, strict=True)]
    found = {name: size for name, size in zip(names, largest, strict=False) if size}
    if found:
        found["allocation_retries"] = sum(rank[-1] for rank in ranks)
    return found
