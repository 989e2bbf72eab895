"""The benchmarks run and print their tables; what they measure is asserted nowhere."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.bench_quantile import Q, print_simulation, run_simulated_ranks
from tests.warm_python import warm_python
from training.entrodrop.quantile import global_quantile

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "bench_head": ["--tokens", "64", "--hidden", "16", "--vocab", "1000", "--rounds", "1"],
    "bench_checkpoint": ["--hidden", "16", "--layers", "1", "--vocab", "101", "--rounds", "1"],
    "bench_data_prep": [
        *("--mb", "1", "--rounds", "1", "--vocab-size", "600"),
        *("--ways", "ceiling", "gigatoken alone", "ours"),
        *("--verbs", "decontaminate"),
    ],
    "bench_host": [
        *("--layers", "1", "--rounds", "1", "--samples", "1", "--modes", "input_reference"),
        *("--deepspeed", "ds_configs/zero3_whole.json", "--checkpointing", "on"),
    ],
    "bench_quantile": [
        *("--log2-values", "8", "--rounds", "1"),
        *("--simulate", "3", "5", "--simulate-tokens", "64"),
    ],
}


@pytest.mark.parametrize("benchmark", COMMANDS)
def test_benchmark_prints_machine_and_table(benchmark):
    command = [warm_python(), "-m", f"benchmarks.{benchmark}", *COMMANDS[benchmark]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "torch " in done.stdout
    assert done.stdout.count("|---") >= 5
    assert "| nan |" not in done.stdout


@pytest.mark.parametrize("values", ["distinct", "many_ties"])
def test_simulated_ranks_find_what_one_process_with_all_values_finds(values):
    torch.manual_seed(0)
    values_RN = torch.rand(7, 33) if values == "distinct" else torch.randint(3, (7, 33)).float()
    found, seconds, num_bytes = run_simulated_ranks(values_RN)
    assert found == [global_quantile(values_RN, Q)] * 7
    assert len(seconds) == 7
    # int64: population and NaNs, then histograms of 11, 11 and 10 bits
    assert num_bytes == 8 * (2 + 2048 + 2048 + 1024)


def test_the_table_of_simulated_ranks_says_what_both_ways_bring_to_a_rank(capsys):
    print_simulation([3, 5], tokens=64)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [[*row[:2], *row[3:5]] for row in rows] == [
        ["| 3", "64", "40,976", "768"],
        ["| 5", "64", "40,976", "1,280"],
    ]
