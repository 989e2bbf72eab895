"""Kill -9 in the midst of a save, a step or an evaluation: the next start goes on exactly."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.grids import WHOLE
from tests.warm_python import warm_python

ROOT = Path(__file__).parents[2]


def sweep(*arguments: str) -> tuple[list[dict[str, Any]], str]:
    """Each trial's result and the last line."""
    done = subprocess.run(
        [warm_python(), "-m", "tests.training.kill_sweep", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.stdout, done.stderr
    lines = done.stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")], lines[-1]


@pytest.mark.slow
def test_a_run_killed_in_a_save_resumes_exactly():
    """A few moments, spread over all of them; `kill_sweep --points all` tries each."""
    number = 8 if WHOLE else 4
    trials, last_line = sweep("--points", str(number))
    assert last_line == f"{number} of {number} kill points resumed exactly", trials
    assert {trial["rank"] for trial in trials} == {0, 1}
    assert {trial["from_step"] for trial in trials} == {2, 4}  # the old one, and the new one


@pytest.mark.slow
def test_a_run_killed_at_a_random_moment_resumes_exactly():
    number = 2 if WHOLE else 1
    trials, last_line = sweep("--random", str(number))
    assert last_line == f"{number} of {number} kill points resumed exactly", trials
