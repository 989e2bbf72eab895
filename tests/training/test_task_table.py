"""Results of benchmarks on a report's page: side by side only where the same was asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.training.report_runs import write_seeds
from training.reports.curves import load_runs
from training.reports.groups import group_runs
from training.reports.report import page_of
from training.reports.task_table import task_table


def add_result(run: Path, accuracy: float, *, step: int = 6, asked: str = "a" * 64) -> None:
    result = {
        "kind": "tasks",
        "step": step,
        "tasks": ["sums"],
        "settings": {"limit": None},
        "results": {"sums": {"acc,none": accuracy, "acc_stderr,none": 0.1}},
        "groups": {},
        "num_fewshot": {"sums": 2},
        "task_hashes": {"sums": asked},
    }
    folder = run / "tasks"
    folder.mkdir(exist_ok=True)
    (folder / f"sums.step-{step}-{asked[0]}.json").write_text(json.dumps(result))


@pytest.fixture
def two_groups(tmp_path: Path) -> list[Path]:
    """Two seeds of `none`, two of `other`; finals are of no matter here."""
    return write_seeds(tmp_path, "none", {1: 2.6, 2: 2.7}) + write_seeds(
        tmp_path, "other", {1: 2.2, 2: 2.4}
    )


def test_scores_are_compared_by_seed_at_their_latest_step(two_groups: list[Path]) -> None:
    for run, accuracy in zip(two_groups, (0.1, 0.3, 0.2, 0.5), strict=True):
        add_result(run, 0.9, step=2)
        add_result(run, accuracy, step=6)
    content = task_table(group_runs(load_runs(two_groups)))
    assert content.heads[:4] == ["task", "metric", "examples", "documents"]
    (row,) = content.rows
    assert row[:4] == ["sums", "acc", "2", "all"]
    # half widths: 12.7062 times the standard errors 0.1, 0.15 and 0.05
    assert row[4:] == ["0.2000 ± 1.2706", "0.3500 ± 1.9059", "+0.1500 (-0.4853 to +0.7853)"]


def test_numbers_of_other_questions_are_not_compared(two_groups: list[Path]) -> None:
    add_result(two_groups[0], 0.1, asked="a" * 64)
    add_result(two_groups[2], 0.9, asked="b" * 64)
    rows = task_table(group_runs(load_runs(two_groups))).rows
    assert sorted(row[4:] for row in rows) == [
        ["0.1000", "none", "none"],
        ["none", "0.9000", "none"],
    ]


def test_the_page_has_the_table_only_when_there_are_results(two_groups: list[Path]) -> None:
    assert "Benchmarks" not in page_of(group_runs(load_runs(two_groups)), [])
    add_result(two_groups[0], 0.1234)
    shown = page_of(group_runs(load_runs(two_groups)), [])
    assert "Benchmarks" in shown
    assert "0.1234" in shown
