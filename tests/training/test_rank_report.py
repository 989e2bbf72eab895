"""The rank that keeps others waiting is found, and nobody is blamed for nothing."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.distributed import run_ranks
from training.ranks.dist import init_layout
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
    meter = RankMeter(layout)
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
