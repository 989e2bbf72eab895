from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.processes import processes_with
from tests.training.short_runs import metrics, short_recipe
from tests.warm_python import warm_python
from training.config.load import dump_recipe
from training.ranks.run_state import read_run_state
from training.sweeps.grid import Mistakes, PlannedRun, parse_axes, plan_runs
from training.sweeps.jobs import steps_done
from training.sweeps.slurm import submit
from training.sweeps.sweep import SweepOptions, run_sweep

REPO_ROOT = Path(__file__).resolve().parents[2]


def write_recipe(corpus: Path, folder: Path, *, max_steps: int = 4) -> Path:
    """A recipe of one process whose runs go to `folder/runs`."""
    recipe = short_recipe(
        corpus,
        folder / "runs",
        evaluation={"every_steps": max_steps // 2, "max_samples": 4},
        checkpoint={"every_steps": 10},
    )
    changes: dict[str, Any] = {"sequence_parallel_size": 1, "micro_batch_samples": 8}
    changes["max_steps"] = max_steps
    path = folder / "recipe.yaml"
    path.write_text(dump_recipe(replace(recipe, train=replace(recipe.train, **changes))))
    return path


def planned(recipe: Path, *varied: str, seeds: str | None = None) -> list[PlannedRun]:
    mistakes = Mistakes()
    runs = plan_runs(recipe, [], parse_axes(varied, seeds), mistakes=mistakes)
    mistakes.raise_all()
    return runs


def sweep_command(recipe: Path, *arguments: str) -> list[str]:
    return [warm_python(), "-m", "training", "sweep", str(recipe), *arguments]


def environment(**changes: str) -> dict[str, str]:
    return os.environ | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", **changes}


@contextmanager
def started_sweep(recipe: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A sweep in the background, which a test that fails does not leave behind."""
    sweep = subprocess.Popen(
        sweep_command(recipe, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPO_ROOT,
        env=environment(),
    )
    try:
        yield sweep
    finally:
        if sweep.poll() is None:
            sweep.terminate()
        sweep.communicate()


def run_command(recipe: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A sweep to its end."""
    with started_sweep(recipe, *arguments) as sweep:
        told = sweep.communicate(timeout=570)
    return subprocess.CompletedProcess(sweep.args, sweep.returncode, *told)


def wait_for_step(run_dir: Path, step: int, sweep: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 400
    while steps_done(run_dir) < step:
        assert sweep.poll() is None, sweep.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_locked(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_every_combination_has_a_recipe_and_a_folder_of_its_own(
    small_corpus: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(small_corpus, tmp_path)
    runs = planned(recipe, "dropout.max_rate=0.1,0.6", "regulariser=none,entrodrop", seeds="1,2")
    assert len({run.run_dir for run in runs}) == 8
    assert runs[0].run_dir == tmp_path / "runs" / "max_rate-0.1,regulariser-none,seed-1"
    assert [run.recipe.seed for run in runs[:4]] == [1, 2, 1, 2]
    assert runs[-1].recipe.dropout.max_rate == 0.6
    assert runs[-1].recipe.regulariser == "entrodrop"


def test_values_with_commas_and_keys_that_end_alike_stay_apart(
    small_corpus: Path, tmp_path: Path
) -> None:
    (axis,) = parse_axes(["data.corpus='a,b',\"c, d\",e"], None)
    assert axis.values == ("'a,b'", '"c, d"', "e")
    (axis,) = parse_axes(["data.mixture=null,{all: {epochs: 2}, b: {epochs: 1}}"], None)
    assert axis.values == ("null", "{all: {epochs: 2}, b: {epochs: 1}}")
    recipe = write_recipe(small_corpus, tmp_path)
    (run,) = planned(recipe, "train.epochs=3", "data.mixture={all: {epochs: 2}}")
    assert run.recipe.data.mixture is not None
    assert "/" not in run.name
    (run,) = planned(recipe, "schedule.kind=constant", "dropout.curriculum.kind=linear")
    assert run.name == "schedule.kind-constant,dropout.curriculum.kind-linear"


@pytest.mark.parametrize(
    ("varied", "seeds", "message"),
    [
        ([], None, "nothing varies"),
        (["train.epochs"], None, "not of the form a.b=1,2,3"),
        (["train.epochs=1,,2"], None, "not of the form a.b=1,2,3"),
        (["train.epochs=1,1"], None, "1 is given twice"),
        (["seed=1,2"], "3,4", "seed is given twice"),
        (["run_dir=a,b"], None, "the sweep itself sets it"),
    ],
)
def test_what_is_no_sweep_is_refused(
    varied: Sequence[str], seeds: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parse_axes(varied, seeds)


def test_mistakes_of_all_combinations_are_told_at_once_and_nothing_is_written(
    small_corpus: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(small_corpus, tmp_path)
    options = SweepOptions(
        recipe=recipe,
        overrides=[],
        varied=[f"data.corpus={small_corpus},nowhere", "dropout.max_rate=0.3,7"],
        seeds="1,2",
    )
    with pytest.raises(ValueError, match="no run was started") as caught:
        run_sweep(options)
    message = str(caught.value)
    assert message.count("dropout.max_rate") == 1  # of four runs
    assert message.count("nowhere/manifest.json: not found") == 1
    assert "and 1 more" in message
    assert not (tmp_path / "runs").exists()


def test_values_that_are_the_same_written_otherwise_are_told(
    small_corpus: Path, tmp_path: Path
) -> None:
    """Two runs of one recipe would count as two seeds."""
    mistakes = Mistakes()
    axes = parse_axes(["optimizer.lr=1e-3,0.001", "seed=1,01"], None)
    plan_runs(write_recipe(small_corpus, tmp_path), [], axes, mistakes=mistakes)
    with pytest.raises(ValueError, match="is the same as lr-1e-3,seed-1") as caught:
        mistakes.raise_all()
    assert "lr-0.001,seed-01" in str(caught.value)


def test_processes_of_this_machine_are_not_those_of_jobs(
    small_corpus: Path, tmp_path: Path
) -> None:
    options = SweepOptions(
        recipe=write_recipe(small_corpus, tmp_path),
        overrides=[],
        varied=["dropout.max_rate=0.3"],
        num_processes=2,
        slurm="--nodes=1",
    )
    with pytest.raises(ValueError, match="--ntasks"):
        run_sweep(options)


def test_a_folder_of_other_settings_is_refused(small_corpus: Path, tmp_path: Path) -> None:
    recipe = write_recipe(small_corpus, tmp_path)
    (run,) = planned(recipe, seeds="1")
    run.run_dir.mkdir(parents=True)
    other = replace(run.recipe, optimizer=replace(run.recipe.optimizer, lr=0.5))
    (run.run_dir / "recipe.resolved.yaml").write_text(dump_recipe(other))
    with pytest.raises(ValueError, match=r"optimizer\.lr was 0\.5, is 0\.01"):
        run_sweep(SweepOptions(recipe=recipe, overrides=[], varied=[], seeds="1"))


def test_a_dry_sweep_tells_new_runs_from_those_that_cannot_be_read(
    small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(small_corpus, tmp_path)
    broken, _ = planned(recipe, seeds="1,2")
    broken.run_dir.mkdir(parents=True)
    (broken.run_dir / "run_state.json").write_text("no state")
    run_sweep(SweepOptions(recipe=recipe, overrides=[], varied=[], seeds="1,2", is_dry=True))
    told = capsys.readouterr().out
    assert "seed-1: will be refused: its run_state.json cannot be read" in told
    assert "seed-2: new" in told


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
    recipe = write_recipe(small_corpus, tmp_path, max_steps=40)
    first_run, second_run = planned(recipe, seeds="1,2")
    with started_sweep(recipe, "--seeds", "1,2") as sweep:
        wait_for_step(first_run.run_dir, 3, sweep)
        sweep.send_signal(signal.SIGTERM)
        _, told = sweep.communicate(timeout=240)
    assert sweep.returncode == 1
    stopped_at = read_run_state(first_run.run_dir).step
    assert 3 <= stopped_at < 40
    assert f"seed-1: stopped and saved at step {stopped_at}" in told
    assert "seed-2: not started" in told
    assert processes_with(str(first_run.run_dir / "recipe.yaml")) == []

    again = run_command(recipe, "--seeds", "1,2", "--jobs", "2")
    assert again.returncode == 0, again.stderr
    assert read_run_state(first_run.run_dir).num_starts == 2
    for run in (first_run, second_run):
        assert [row["step"] for row in metrics(run.run_dir, "step")] == list(range(1, 41))


@pytest.mark.slow
def test_runs_of_a_killed_sweep_are_not_started_twice_and_killed_ones_go_on(
    small_corpus: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(small_corpus, tmp_path, max_steps=40)
    (run,) = planned(recipe, seeds="1")
    with started_sweep(recipe, "--seeds", "1") as sweep:
        wait_for_step(run.run_dir, 12, sweep)
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
    assert [row["step"] for row in metrics(run.run_dir, "step")] == list(range(1, 41))


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
