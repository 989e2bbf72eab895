"""The rank that keeps others waiting is found, and nobody is blamed for nothing."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from tests.distributed import run_ranks
from training.ranks.dist import init_layout
from training.ranks.phase_memory import PhaseMemory, by_phase
from training.ranks.rank_report import REPORT_EVERY_STEPS, RankMeter, summarise


def test_the_slowest_rank_is_measured_against_the_middle_of_all():
    found = summarise([[0.1, 1.0, 3.0], [0.1, 1.0, 5.0], [0.4, 1.0, 4.0], [0.2, 1.0, 2.0]])
    assert found["slowest_rank"] == 2
    assert found["late_seconds"] == pytest.approx(0.25)
    assert found["late_share"] == pytest.approx(0.25)
    assert (found["peak_memory_gib"], found["peak_memory_rank"]) == (5.0, 1)


def test_one_rank_waits_for_nobody():
    assert summarise([[0.3, 1.0, 1.0]])["late_seconds"] == 0.0


def reports_of_rank() -> list[dict[str, Any] | None]:
    layout = init_layout(sp_size=1)
    meter = RankMeter(layout, PhaseMemory(layout.device))
    reports = []
    for _ in range(2 * REPORT_EVERY_STEPS):
        began = time.monotonic()
        time.sleep(0.004 * layout.rank)
        alone = time.monotonic() - began
        meter.add(alone_seconds=alone, step_seconds=alone + 0.01)
        reports.append(meter.report())
    return reports


def test_ranks_report_together_every_so_many_steps():
    first, second = run_ranks(reports_of_rank, world_size=2)
    assert first == second
    there = [number for number, report in enumerate(first) if report]
    assert there == [REPORT_EVERY_STEPS - 1, 2 * REPORT_EVERY_STEPS - 1]
    for number in there:
        assert first[number]["slowest_rank"] == 1
        assert first[number]["late_seconds"] > 0.001
        assert first[number]["peak_memory_gib"] > 0.01
        assert "allocation_retries" not in first[number]  # of a GPU's allocator


def test_peaks_belong_to_their_phase(monkeypatch):
    """With an allocator of made-up figures: what torch.cuda says between two calls."""
    now = {"allocated": 0, "reserved": 0}
    peaks = dict(now)

    def allocate(gib: int, reserved: int) -> None:
        now.update(allocated=gib << 30, reserved=reserved << 30)
        peaks.update({kind: max(peaks[kind], size) for kind, size in now.items()})

    for kind in now:
        monkeypatch.setattr(torch.cuda, f"max_memory_{kind}", lambda _, kind=kind: peaks[kind])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: peaks.update(now))
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda _: {"num_alloc_retries": 2})
    memory = PhaseMemory(torch.device("cuda"))
    allocate(9, 9)  # before the first phase
    allocate(2, 9)
    memory.enter("forward")
    allocate(5, 10)
    allocate(4, 10)
    memory.enter("backward")
    allocate(7, 12)
    allocate(2, 12)
    memory.enter("forward")
    allocate(3, 12)
    taken = memory.take()
    allocate(1, 8)
    assert memory.take()[:2] == [3.0, 12.0]  # of the phase that goes on
    assert memory.largest_gib == 9.0
    assert by_phase([taken, [0.0] * len(taken)]) == {
        "forward_allocated_gib": 5.0,
        "forward_reserved_gib": 12.0,
        "backward_allocated_gib": 7.0,
        "backward_reserved_gib": 12.0,
        "allocation_retries": 2.0,
    }
