"""Runs of a sweep as Slurm jobs: submitted once each, and not again while they are queued."""

from __future__ import annotations

import shlex
import subprocess

from training.config.shipped import job_script
from training.sweeps.grid import PlannedRun
from training.sweeps.jobs import Outcome

_JOB_FILE = "slurm_job_id"
_ENDED_LONG_AGO = "Invalid job id"


def slurm_command(run: PlannedRun, options: str) -> list[str]:
    """What submits a run; the user's options come last, so that they win."""
    own = ("--parsable", f"--job-name={run.name}", f"--output={run.run_dir}/slurm-%j.out")
    script, told = job_script("train.sbatch")
    prefix = ["env", *(f"{name}={value}" for name, value in told.items())] if told else []
    return [*prefix, "sbatch", *own, *shlex.split(options), str(script), str(run.recipe_path)]


def queued_job(run: PlannedRun) -> str | None:
    """The job of a run that waits or runs, from an earlier sweep.

    Raises:
        ValueError: when Slurm does not answer: submitted again, the run might be queued twice.
    """
    path = run.run_dir / _JOB_FILE
    if not path.exists():
        return None
    job, _, cluster = path.read_text(encoding="utf-8").strip().partition(";")
    where = [f"--clusters={cluster}"] if cluster else []
    asked = _call(["squeue", "--noheader", *where, f"--jobs={job}", "--format=%T"])
    if asked.returncode:
        if _ENDED_LONG_AGO in asked.stderr:
            return None
        raise ValueError(f"--slurm: is job {job} of {run.name} queued? squeue: {_output_of(asked)}")
    states = [line for line in asked.stdout.splitlines() if not line.startswith("CLUSTER:")]
    return job if "".join(states).strip() else None


def submit(run: PlannedRun, options: str) -> Outcome:
    """Queue a run, unless it is queued already."""
    job = queued_job(run)
    if job:
        return Outcome(run, True, f"is queued as job {job}")
    result = _call(slurm_command(run, options))
    if result.returncode:
        return Outcome(run, False, f"sbatch: {_output_of(result)}")
    job = result.stdout.strip()  # job;cluster where there are several
    (run.run_dir / _JOB_FILE).write_text(f"{job}\n", encoding="utf-8")
    return Outcome(run, True, f"queued as job {job.partition(';')[0]}")


def _output_of(result: subprocess.CompletedProcess[str]) -> str:
    return result.stderr.strip() or result.stdout.strip()


def _call(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ValueError(f"--slurm: there is no {command[0]} on this machine") from None
