from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.warm_python import warm_python

REPO_ROOT = Path(__file__).resolve().parents[2]


def quickstart(out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["launch/quickstart.sh", "--small", "--out", str(out)],
        cwd=REPO_ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHON": warm_python()},
        capture_output=True,
        text=True,
        timeout=500,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which a small quickstart has run, and what it printed."""
    out = tmp_path_factory.mktemp("quickstart")
    shown = quickstart(out)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    return out, shown.stdout


@pytest.mark.slow
def test_quickstart_announces_each_stage_and_ends_with_what_to_do_next(
    finished: tuple[Path, str],
) -> None:
    _, shown = finished
    assert [f"[{n}/7]" in shown for n in range(1, 8)] == [True] * 7
    assert "What to run next" in shown
    assert "Traceback" not in shown


@pytest.mark.slow
def test_quickstart_learns_and_its_numbers_are_finite(finished: tuple[Path, str]) -> None:
    run_dir = finished[0] / "runs" / "quickstart-small"
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "step"]
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    assert [row["step"] for row in steps] == list(range(1, len(steps) + 1))
    assert all(math.isfinite(row["loss"]) for row in steps + evaluations)
    assert evaluations[-1]["loss"] < evaluations[0]["loss"] - 1.0
    assert steps[-1]["loss"] < steps[0]["loss"] - 1.0
    assert steps[-1]["drop_rate_realised"] > 0
    evaluated = json.loads((run_dir / "evaluation.json").read_text())
    assert evaluated["loss"] == pytest.approx(evaluations[-1]["loss"], abs=0.02)


@pytest.mark.slow
def test_quickstart_exports_what_plain_transformers_loads(finished: tuple[Path, str]) -> None:
    export = finished[0] / "runs" / "quickstart-small" / "export"
    tokenizer = AutoTokenizer.from_pretrained(export)
    model = AutoModelForCausalLM.from_pretrained(export)
    ids = tokenizer("import os\n", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(ids).logits
    assert logits.shape[:2] == ids.shape
    assert torch.isfinite(logits).all()
    assert tokenizer.decode(ids[0]) == "import os\n"


@pytest.mark.slow
def test_quickstart_draws_the_run(finished: tuple[Path, str]) -> None:
    report = finished[0] / "runs" / "quickstart-small" / "report"
    assert "best held-out loss" in (report / "index.html").read_text(encoding="utf-8")
    assert (report / "report.png").stat().st_size > 10_000


def test_quickstart_never_touches_a_run_that_it_has_not_made(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "quickstart-small"
    run_dir.mkdir(parents=True)
    (run_dir / "precious").touch()
    shown = quickstart(tmp_path)
    assert shown.returncode == 1
    assert "was not made by the quickstart" in shown.stderr
    assert (run_dir / "precious").exists()


@pytest.mark.parametrize("num_gpus", [1, 8])
def test_quickstart_uses_the_gpus_that_there_are(num_gpus: int, tmp_path: Path) -> None:
    """Of its training, the command: the python here answers for recipes and runs nothing."""
    python, said = tmp_path / "python", tmp_path / "said"
    python.write_text(
        f"""#!/bin/sh
echo "$*" >> {said}
case "$*" in
    *--open-corpus*) ;;
    -c* | *recipe_facts*) exec {sys.executable} "$@" ;;
esac
"""
    )
    python.chmod(0o755)
    visible = ",".join(map(str, range(num_gpus)))
    subprocess.run(
        ["launch/quickstart.sh", "--out", str(tmp_path)],
        cwd=REPO_ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": visible, "PYTHON": str(python)},
        capture_output=True,
        timeout=100,
    )
    (train,) = {line for line in said.read_text().splitlines() if "training train" in line}
    assert f"--nproc-per-node={min(num_gpus, 2)}" in train
    assert "deepspeed=ds_configs/zero3_whole.json" in train
    assert ("train.sequence_parallel_size=1" in train) == (num_gpus == 1)


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_without_a_model_is_refused_at_once(exists: bool, tmp_path: Path) -> None:
    """Not looked for on the hub, nor after the imports of torch and transformers."""
    folder = tmp_path / "nope"
    if exists:
        folder.mkdir()
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "training", "generate", str(folder)],
        cwd=REPO_ROOT,
        env={name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    told = f"{folder}: no Hugging Face folder (it has no config.json)"
    assert line.startswith(f"error: {told if exists else f'there is no folder {folder}'}")
    assert time.monotonic() - began < 5
