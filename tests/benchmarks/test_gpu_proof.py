"""The rows of the proof on a GPU pass; on a CPU, with tiny shapes, so does its script."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_proof import __main__ as gpu_proof
from benchmarks.gpu_proof import checks, meters
from benchmarks.gpu_proof.__main__ import main
from benchmarks.gpu_proof.meters import sums_of_calls
from benchmarks.gpu_proof.rows import Row, need_package
from benchmarks.gpu_proof.steps import STEPS, run_step
from tests.distributed import run_ranks
from tests.grids import WHOLE
from tests.training.layouts import tiny_recipe

CHECKS = [
    *(checks.kernels, checks.kernels_beyond_int32, checks.attention, checks.documents),
    *(checks.fused_layers, checks.head, checks.skipped_step),
]


def proof(out: Path, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """The exit code and the rows, without what the first line says of the machine."""
    code = main(["--out", str(out), "--device", "cpu", "--small", *arguments])
    head, *rows = map(json.loads, (out / "proof.jsonl").read_text().splitlines())
    assert head["device"] == "cpu" and "torch" in head["versions"]
    return code, rows


@pytest.mark.slow
def test_all_steps_pass_on_a_cpu_with_tiny_shapes(tmp_path, capsys):
    steps = [name for name in STEPS if WHOLE or name != "launcher"]
    code, rows = proof(tmp_path, "--only", *steps)
    assert code == 0, capsys.readouterr()
    assert list(dict.fromkeys(row["step"] for row in rows)) == steps
    assert all(row["figures"] for row in rows if row["result"] == "pass")
    assert all(row["reason"] for row in rows if row["result"] == "skipped")
    of_steps = [row for row in rows if row["row"].endswith("loss_lagged")]
    assert all({"ms", "hardware_tflops", "operators"} < row["figures"].keys() for row in of_steps)
    shown = (tmp_path / "proof.md").read_text()
    assert shown == capsys.readouterr().out
    assert all(f"| {row['step']} | {row['row']} | {row['result']} |" in shown for row in rows)


def test_a_step_that_hangs_is_told_and_the_exit_code_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(STEPS, "attention", (STEPS["attention"][0], 0))
    code, (row,) = proof(tmp_path, "--only", "attention")
    assert (code, row["result"]) == (1, "FAIL")
    assert "hanging ranks: [0]" in row["reason"]
    assert "| attention | within 0 s | FAIL |" in capsys.readouterr().out


def test_a_row_that_fails_keeps_no_other_from_running(tmp_path, monkeypatch):
    def rows(device: str, small: bool) -> Iterator[Row]:
        yield "first", lambda: {"figure": 1 / 0}
        yield "second", lambda: need_package("no_such_package") or {}
        yield "third", lambda: {"figure": 3.0}

    monkeypatch.setitem(STEPS, "attention", (rows, 1))
    run_step("attention", "cpu", True, tmp_path / "rows")
    found = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert [row["result"] for row in found] == ["FAIL", "skipped", "pass"]
    assert "ZeroDivisionError" in found[0]["reason"]
    assert found[1]["reason"] == "no_such_package is not installed"
    assert found[2]["figures"] == {"figure": 3.0}


def test_all_steps_end_within_nine_minutes(tmp_path, monkeypatch, capsys):
    assert sum(limit_seconds for _, limit_seconds in STEPS.values()) <= gpu_proof.ALL_SECONDS == 540
    monkeypatch.setattr(gpu_proof, "ALL_SECONDS", 0)
    code, rows = proof(tmp_path, "--only", "attention", "heads")
    assert (code, [row["result"] for row in rows]) == (1, ["FAIL", "FAIL"])
    assert "heads did not begin: 0 seconds are over" in capsys.readouterr().err


def test_launches_and_synchronisations_are_told_apart():
    calls = {"cudaLaunchKernel": 5, "cuLaunchKernelEx": 2, "cudaStreamSynchronize": 3}
    calls |= {"aten::mm": 7, "cudaMemcpyAsync": 4, "cudaDeviceSynchronize": 1, "Launch": 9}
    assert sums_of_calls(calls) == {"launches": 7, "synchronisations": 4}
    with pytest.raises(AssertionError, match="no launch"):
        sums_of_calls({"aten::mm": 7})


def test_memory_far_from_its_forecast_fails():
    recipe = tiny_recipe()
    phases = ("forward", "backward", "update")
    found = meters.forecast_bytes(recipe, on_gpu=False)
    assert meters.compare(found, recipe, on_gpu=False)["peak_to_forecast"] == 1
    for factor in (0.7, 1.2):
        with pytest.raises(AssertionError, match=f"{factor:.2f} of the forecast"):
            meters.compare({p: factor * found[p] for p in phases}, recipe, on_gpu=False)


@pytest.mark.gpu
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_gpu_computes_what_it_should(check) -> None:
    run_ranks(check, "cuda", False, world_size=1, gpus=True, timeout_seconds=60)
