"""The whole study: a kill changes none of its numbers."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from benchmarks.study.arms import ARM_OF
from benchmarks.study.comparison import places_of
from benchmarks.study.jobs import (
    count_jobs,
)
from benchmarks.study.results import read_results
from benchmarks.study.settings import MINIATURE
from benchmarks.study.tables import knowledge_table, losses_table
from tests.grids import WHOLE
from tests.warm_python import warm_python


def study(out: Path, *more: str) -> list[str]:
    command = [warm_python(), "-m", "benchmarks.study", "--setting", "miniature"]
    return [*command, "--out", str(out), "--arms", "none", "random_input", *more]


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def numbers(out: Path) -> dict[str, dict]:
    """Rows by key, without what depends on the clock."""
    return {
        found["key"]: {k: v for k, v in found.items() if "seconds" not in k}
        for found in read_results(out / "results.jsonl")
    }


@pytest.mark.slow
def test_a_killed_study_goes_on_and_ends_with_the_numbers_of_an_undisturbed_one(tmp_path):
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    run(*study(calm, "--stage", "corpora", "base"))
    shutil.copytree(calm, killed)
    shutil.copytree(calm, tmp_path / "levers")
    run(*study(calm, "--jobs", "2", "--stage", "runs", "report"))

    victim = subprocess.Popen(
        study(killed, "--stage", "runs"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not saved_in_the_middle(killed):
        assert victim.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    rows_before = len(read_results(killed / "results.jsonl"))
    (begun,) = [path for path in (killed / "runs").iterdir() if (path / "checkpoints").exists()]
    time.sleep(0.5)  # the run dies with the study
    size = (begun / "metrics.jsonl").stat().st_size
    time.sleep(0.5)
    assert (begun / "metrics.jsonl").stat().st_size == size

    run(*study(killed, "--stage", "runs"))
    assert 1 <= rows_before < len(read_results(killed / "results.jsonl"))
    rows = numbers(calm)
    assert numbers(killed) == rows
    assert tables(killed) == tables(calm)
    report = (calm / "report" / "report.md").read_text()
    assert len(rows) == count_jobs(
        MINIATURE, arms=[ARM_OF[name] for name in ("none", "random_input")]
    )
    final = [found["final"]["domain_loss"] for found in rows.values() if found["arm"] == "none"]
    assert f"{sum(final) / len(final):.3f} |" in report
    for found in rows.values():
        if "curve" in found:  # the trainer's own evaluation and plain transformers agree
            assert found["final"]["domain_loss"] == pytest.approx(
                found["curve"]["loss"][-1], abs=2e-4
            )
    assert sorted(path.name for path in (calm / "report").glob("*.png")) == [
        "evidence_bands.png",
        "evidence_curves.png",
        "evidence_differences.png",
        "evidence_knowledge.png",
        "evidence_spread.png",
    ]

    arms = ["plain", "ema_weights", *(["lora"] if WHOLE else [])]
    levers = ["--setting", "miniature_levers", "--arms", *arms]
    run(*study(tmp_path / "levers", "--stage", "corpora", "runs", "report", *levers))
    found = numbers(tmp_path / "levers")
    (base,) = (one for one in found.values() if one["arm"] == "base")
    for arm in arms[1:]:
        (tuned,) = (one for one in found.values() if one["arm"] == arm and one["seed"] == 1)
        # what is scored are the averaged weights, and the base with its adapter merged
        assert tuned["best"]["domain_loss"] == pytest.approx(
            min(tuned["curve"]["loss"][1:]), abs=2e-4
        )
        ends = tuned["best"]["general_loss"], base["final"]["general_loss"]
        # no law: an adapter's two ends are so near that what lies between may be a little above
        above = {"ema_weights": 0.0, "lora": 0.05}[arm]
        assert min(ends) - 0.05 < tuned["between"]["0.5"]["general_loss"] < max(ends) + above
        answers = tuned["best"]["answers"]["lines"]
        assert answers["right"] in {n / 8 for n in range(9)} and answers["standard_error"] >= 0
    assert "answers" in base["final"]
    report = (tmp_path / "levers" / "report" / "report.md").read_text()
    assert "EMA of weights" in report and "| lines right, final | lines right, best |" in report


def tables(out: Path) -> list[str]:
    places = places_of(read_results(out / "results.jsonl"))
    return [table(place) for place in places for table in (losses_table, knowledge_table)]


def saved_in_the_middle(out: Path) -> bool:
    """A run has saved, and a result is there before it."""
    saved = [*out.glob("runs/*/checkpoints/step-*")]
    return bool(saved) and bool(read_results(out / "results.jsonl"))


def test_a_mistake_is_one_line(tmp_path):
    done = subprocess.run(study(tmp_path, "--sizes", "7B"), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: --sizes 7B: there are tiny\n")
    done = subprocess.run(study(tmp_path, "--domains", "law"), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: --domains law: there are code\n")
