"""Runs several jobs in parallel, each in a fork of this process; keeps results as they come."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.study.corpora import Folders
from benchmarks.study.forks import fork, refuse_failure
from benchmarks.study.jobs import Job
from benchmarks.study.results import Row, append_result
from common.progress import progress_bar

_LOOK_SECONDS = 0.2


def run_pool(
    next_jobs: Callable[[], list[Job]],
    work: Callable[[Job], Row],
    *,
    folders: Folders,
    results: Path,
    num_side_by_side: int,
    num_all: int,
    num_done: int,
    until: float | None,
) -> bool:
    """Run all jobs; every result is on disk before the run's folder is deleted.

    Args:
        next_jobs: unfinished runs that can start, asked again whenever one has ended.
        work: called in a fork.
        num_all, num_done: for the progress bar.
        until: `time.monotonic()` after which none is started.

    Returns:
        Whether nothing is left to run.

    Raises:
        ValueError: when a run fails, with the end of its log. Other runs are stopped; started
        again, they resume from their newest checkpoint.
    """
    running: dict[int, Job] = {}
    with progress_bar(num_all, what="study", unit=" runs", done=num_done) as bar:
        try:
            while True:
                is_late = until is not None and time.monotonic() > until
                waiting = [] if is_late else next_jobs()
                waiting = [job for job in waiting if job not in running.values()]
                for job in waiting[: num_side_by_side - len(running)]:
                    running[_start(job, work, folders)] = job
                if not running:
                    return not is_late and not waiting
                bar.set_postfix_str(", ".join(job.key for job in running.values()))
                child, status = _wait_for_one(list(running))
                job = running.pop(child)
                log = folders.run(job.folder_name) / "log.txt"
                refuse_failure(status, log=log, what=f"run {job.key}")
                _keep(folders, job, results)
                bar.update()
        finally:
            for child in running:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


def _start(job: Job, work: Callable[[Job], Row], folders: Folders) -> int:
    folder = folders.run(job.folder_name)
    folder.mkdir(parents=True, exist_ok=True)

    def write_result() -> None:
        staged = folder / ".result.json"
        staged.write_text(json.dumps(work(job)), encoding="utf-8")
        staged.rename(folder / "result.json")

    return fork(write_result, log=folder / "log.txt")


def _wait_for_one(children: list[int]) -> tuple[int, int]:
    while True:
        for child in children:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return child, status
        time.sleep(_LOOK_SECONDS)


def _keep(folders: Folders, job: Job, results: Path) -> None:
    folder = folders.run(job.folder_name)
    append_result(results, json.loads((folder / "result.json").read_text(encoding="utf-8")))
    shutil.rmtree(folder)
