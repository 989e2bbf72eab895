"""A sweep whose runs fail, are asked to end, are killed, or become jobs: none starts twice."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.processes import processes_with
from tests.training.short_runs import metrics
from tests.training.sweep_runs import (
    is_locked,
    planned,
    run_command,
    started_sweep,
    wait_for_step,
    write_recipe,
)
from training.ranks.run_state import read_run_state
from training.sweeps.slurm import submit

_LONG = 24
"""Steps of a run that is still going when a test that has seen it begin disturbs it."""


@pytest.mark.slow
def test_a_run_that_fails_is_told_and_the_others_go_on(small_corpus: Path, tmp_path: Path) -> None:
    recipe = write_recipe(small_corpus, tmp_path)
    arguments = ["--vary", "regulariser=none,entrodrop", "--jobs", "2"]
    broken, well = planned(recipe, "regulariser=none,entrodrop")
    broken.run_dir.mkdir(parents=True)
    (broken.run_dir / "run_state.json").write_text("no state")
    first = run_command(recipe, *arguments)
    assert first.returncode == 1
    assert "1 of 2 runs are not complete" in first.stderr
    assert "regulariser-none: refused" in first.stderr
    assert "run_state.json" in first.stderr
    assert read_run_state(well.run_dir).state == "complete"
    assert (tmp_path / "runs" / "report" / "index.html").exists()

    (broken.run_dir / "run_state.json").unlink()
    second = run_command(recipe, *arguments)
    assert second.returncode == 0, second.stderr
    assert "2 runs in" in second.stdout
    assert "1 of them complete" in second.stdout
    assert read_run_state(broken.run_dir).state == "complete"
    assert read_run_state(well.run_dir).num_starts == 1
    assert "cannot tell with 1 seed" in second.stdout
    page = (tmp_path / "runs" / "report" / "index.html").read_text("utf-8")
    assert "entrodrop against none" in page


@pytest.mark.slow
def test_a_sweep_that_is_asked_to_end_saves_and_goes_on(small_corpus: Path, tmp_path: Path) -> None:
    recipe = write_recipe(small_corpus, tmp_path, max_steps=_LONG)
    first_run, second_run = planned(recipe, seeds="1,2")
    with started_sweep(recipe, "--seeds", "1,2") as sweep:
        wait_for_step(first_run.run_dir, 3, sweep)
        sweep.send_signal(signal.SIGTERM)
        _, told = sweep.communicate(timeout=240)
    assert sweep.returncode == 1
    stopped_at = read_run_state(first_run.run_dir).step
    assert 3 <= stopped_at < _LONG
    assert f"seed-1: stopped and saved at step {stopped_at}" in told
    assert "seed-2: not started" in told
    assert processes_with(str(first_run.run_dir / "recipe.yaml")) == []

    again = run_command(recipe, "--seeds", "1,2", "--jobs", "2")
    assert again.returncode == 0, again.stderr
    assert read_run_state(first_run.run_dir).num_starts == 2
    for run in (first_run, second_run):
        assert [row["step"] for row in metrics(run.run_dir, "step")] == list(range(1, _LONG + 1))


@pytest.mark.slow
def test_runs_of_a_killed_sweep_are_not_started_twice_and_killed_ones_go_on(
    small_corpus: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(small_corpus, tmp_path, max_steps=_LONG)
    (run,) = planned(recipe, seeds="1")
    with started_sweep(recipe, "--seeds", "1") as sweep:
        wait_for_step(run.run_dir, 12, sweep)  # behind a save
        sweep.kill()
    # as `training.ranks.run_folder` has it: the host's name, "process", its number
    process = int((run.run_dir / "run.lock").read_text().split()[-1])
    os.kill(process, signal.SIGSTOP)  # so that the run does not end before the next command looks
    try:
        refused = run_command(recipe, "--seeds", "1")
        assert refused.returncode == 2
        assert "in use by another sweep, or by runs that it started" in refused.stderr
    finally:
        os.kill(process, signal.SIGKILL)
    deadline = time.monotonic() + 400
    while is_locked(tmp_path / "runs" / ".sweep.lock"):  # by what the run's launcher has started
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert read_run_state(run.run_dir).state in ("running", "failed")

    again = run_command(recipe, "--seeds", "1")
    assert again.returncode == 0, again.stderr
    assert read_run_state(run.run_dir).num_starts == 2
    assert [row["step"] for row in metrics(run.run_dir, "step")] == list(range(1, _LONG + 1))


# A stand-in for the command line alone; jobs of a real Slurm are tests/launch/test_slurm_jobs.py.
_SBATCH = """#!/bin/sh
printf '%s\\n' "$@" >> "$CALLS"
echo 4711
"""


_SQUEUE = """#!/bin/sh
echo PENDING
"""


def test_a_slurm_job_has_the_options_given_and_is_submitted_once(
    small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("sbatch", _SBATCH), ("squeue", _SQUEUE)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    (run,) = planned(write_recipe(small_corpus, tmp_path), seeds="1")
    run.run_dir.mkdir(parents=True)

    assert submit(run, "--nodes=2 --comment='two words'").text == "queued as job 4711"
    arguments = (tmp_path / "calls").read_text().splitlines()
    assert arguments[-2:] == ["launch/slurm/train.sbatch", str(run.run_dir / "recipe.yaml")]
    assert "--nodes=2" in arguments
    assert "--comment=two words" in arguments
    assert submit(run, "--nodes=2").text == "is queued as job 4711"
    assert (tmp_path / "calls").read_text().splitlines() == arguments

    # a controller that does not answer is no job that has ended
    (tools / "squeue").write_text("#!/bin/sh\necho 'Unable to contact' >&2\nexit 1\n")
    with pytest.raises(ValueError, match="Unable to contact"):
        submit(run, "--nodes=2")
    (tools / "squeue").write_text("#!/bin/sh\necho 'Invalid job id specified' >&2\nexit 1\n")
    assert submit(run, "--nodes=2").text == "queued as job 4711"


def test_sbatch_that_refuses_is_told(
    small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'no such partition' >&2\nexit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (run,) = planned(write_recipe(small_corpus, tmp_path), seeds="1")
    outcome = submit(run, "--partition=x")
    assert not outcome.is_well
    assert outcome.text == "sbatch: no such partition"
