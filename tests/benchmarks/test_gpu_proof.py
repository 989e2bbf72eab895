"""The steps of the proof on a GPU pass; on a CPU, with tiny shapes, so does its script."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks.gpu_proof import checks
from benchmarks.gpu_proof.__main__ import STEPS
from tests.distributed import run_ranks
from tests.warm_python import warm_python

ROOT = Path(__file__).parents[2]
CHECKS = [name for name, (work, _) in STEPS.items() if work.__module__ == checks.__name__]


def test_all_steps_pass_on_a_cpu_with_tiny_shapes(tmp_path: Path) -> None:
    command = [warm_python(), "-m", "benchmarks.gpu_proof", "--out", str(tmp_path)]
    command += ["--device", "cpu", "--small"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "proof.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(STEPS)
    assert all(row["figures"] for row in rows)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "step", [name for name in STEPS if STEPS[name][0].__module__[-6:] == "checks"]
)
def test_a_gpu_computes_what_it_should(step: str) -> None:
    work, limit_seconds = STEPS[step]
    run_ranks(work, "cuda", False, world_size=1, gpus=True, timeout_seconds=limit_seconds)
