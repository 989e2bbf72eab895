"""The steps of the proof on a GPU pass; on a CPU, with tiny shapes, so does its script."""

from __future__ import annotations

import json

import pytest

from benchmarks.gpu_proof import __main__ as gpu_proof
from benchmarks.gpu_proof import checks
from benchmarks.gpu_proof.__main__ import STEPS, main
from tests.distributed import run_ranks

CHECKS = [name for name, (work, _) in STEPS.items() if work.__module__ == checks.__name__]


@pytest.mark.slow
def test_all_steps_pass_on_a_cpu_with_tiny_shapes(tmp_path, capsys):
    assert main(["--out", str(tmp_path), "--device", "cpu", "--small"]) == 0, capsys.readouterr()
    rows = [json.loads(line) for line in (tmp_path / "proof.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(STEPS)
    assert all(row["figures"] for row in rows)


def test_a_step_that_fails_is_told_and_the_exit_code_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(STEPS, "documents", (checks.documents, 0))
    only = ["--only", "documents"]
    assert main(["--out", str(tmp_path), "--device", "cpu", "--small", *only]) == 1
    (row,) = map(json.loads, (tmp_path / "proof.jsonl").read_text().splitlines())
    assert row["result"] == "FAIL"
    assert "hanging ranks: [0]" in row["error"]
    assert "| documents | FAIL |" in capsys.readouterr().out


def test_all_steps_end_within_nine_minutes(tmp_path, monkeypatch, capsys):
    assert sum(limit_seconds for _, limit_seconds in STEPS.values()) <= gpu_proof.ALL_SECONDS == 540
    monkeypatch.setattr(gpu_proof, "ALL_SECONDS", 0)
    only = ["--only", "documents", "head"]
    assert main(["--out", str(tmp_path), "--device", "cpu", "--small", *only]) == 1
    rows = [json.loads(line) for line in (tmp_path / "proof.jsonl").read_text().splitlines()]
    assert [row["result"] for row in rows] == ["FAIL", "FAIL"]
    assert "head did not begin: 0 seconds are over" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize(
    "step", [name for name in STEPS if STEPS[name][0].__module__[-6:] == "checks"]
)
def test_a_gpu_computes_what_it_should(step: str) -> None:
    work, limit_seconds = STEPS[step]
    run_ranks(work, "cuda", False, world_size=1, gpus=True, timeout_seconds=limit_seconds)
