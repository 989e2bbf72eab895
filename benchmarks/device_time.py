"""How long work takes on a device: medians of warm rounds, by CUDA's events where there are any."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def median_milliseconds(
    work: Callable[[], object], device: str, *, rounds: int, warm_up: int = 1
) -> float:
    """Of one call of `work`, from an idle device to its end there.

    Args:
        device: "cuda" or "cpu".
        rounds: how many are timed.
        warm_up: calls before them, which compile kernels and fill the allocator's cache.
    """
    for _ in range(warm_up):
        work()
    timed = _by_events if device == "cuda" else _by_clock
    return statistics.median(timed(work) for _ in range(rounds))


def _by_events(work: Callable[[], object]) -> float:
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    began.record()
    work()
    ended.record()
    torch.cuda.synchronize()
    return float(began.elapsed_time(ended))


def _by_clock(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3
