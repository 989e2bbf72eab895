"""The benchmark of a step prints its four tables with every mode; no speed is asserted."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks.step_meters import PHASES
from benchmarks.step_workload import MODES
from tests.warm_python import warm_python

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TINY = ["--layers", "1", "--hidden", "16", "--vocab", "64", "--sequence-tokens", "16"]
SHORT = ["--threads", "1", "--rounds", "1", "--phase-steps", "1", "--trainer-rounds", "1"]


def tables_of_benchmark(*arguments: str) -> list[list[list[str]]]:
    """Cells of the rows of each table, the row of dashes left out."""
    command = [warm_python(), "-m", "benchmarks.bench_step", *TINY, *SHORT, *arguments]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=180
    )
    assert "torch " in done.stdout and "deepspeed " in done.stdout
    tables: list[list[list[str]]] = [[]]
    for line in done.stdout.splitlines():
        if not line.startswith("|"):
            tables.append([])
        elif not line.startswith("|---"):
            tables[-1].append([cell.strip() for cell in line.strip("|").split("|")])
    return [table for table in tables if table]


def test_every_mode_and_the_trainer_are_measured() -> None:
    ratios, phases, collectives, trainer = tables_of_benchmark("--ranks", "1")
    assert [row[0] for row in ratios[1:]] == list(MODES)
    assert [row[0] for row in phases[1:]] == list(MODES)
    assert phases[0] == ["mode", *PHASES, "sum"]
    assert {row[0] for row in collectives[1:]} == set(MODES)
    assert [row[0] for row in trainer[1:]] == ["ours, off", "ours, input_reference", "Trainer"]


def test_what_we_send_does_not_grow_with_tokens_but_for_one_value_a_row() -> None:
    shared = ["--ranks", "2", "--sp", "2", "--samples", "2", "--modes", "input_online"]
    _, (_, *rows) = tables_of_benchmark(*shared, "--skip-phases")
    ours = {row[2]: row[4:] for row in rows if row[:2] == ["input_online", "ours"]}
    assert ours.keys() == {"allreduce", "allgather"}
    for shorter, longer in ours.values():
        assert shorter == longer
    # two rows, one fp32 a row and rank
    assert ours["allgather"][0] == f"{2 * 2 * 4}"
