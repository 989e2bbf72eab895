"""The benchmarks run and print their tables; what they measure is asserted nowhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "bench_head": ["--tokens", "64", "--hidden", "16", "--vocab", "1000", "--rounds", "1"],
    "bench_quantile": ["--log2-values", "8", "--rounds", "1"],
}


@pytest.mark.parametrize("benchmark", COMMANDS)
def test_benchmark_prints_machine_and_table(benchmark):
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", *COMMANDS[benchmark]]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=180
    )
    assert "torch " in done.stdout
    assert done.stdout.count("|---") >= 6
    assert "| nan |" not in done.stdout
