"""Runs of a sweep as processes of this machine, some in parallel: started, watched, ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from common.progress import StepProgress
from training.metrics.file import METRICS_FILE
from training.ranks.run_state import RunState, read_run_state
from training.sweeps.grid import PlannedRun

_LOG = "sweep.log"
_POLL_SECONDS = 0.5
_SECONDS_BETWEEN_LINES = 15.0
_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    run: PlannedRun
    is_well: bool
    text: str


@dataclass
class _Job:
    run: PlannedRun
    process: subprocess.Popen[bytes]
    slot: int
    starts_before: int
    began: float = field(default_factory=time.monotonic)


class LocalRuns:
    """Starts `launch/local.sh` for each run, and reports each when it has ended."""

    def __init__(
        self,
        runs: Sequence[PlannedRun],
        *,
        total_steps: dict[str, int],
        environments: Sequence[dict[str, str]],
        num_processes: int | None,
        lock: int,
    ) -> None:
        """Prepare the runs.

        Args:
            runs: those that are not complete.
            total_steps: of each run, by name.
            environments: one for each of the runs in parallel.
            num_processes: of each run; None leaves it to the launcher.
            lock: a file that stays locked while any process of a run is alive.
        """
        self._waiting = list(runs)
        self._total_steps = {run.name: total_steps[run.name] for run in runs}
        self._environments, self._num_processes, self._lock = environments, num_processes, lock
        self._jobs: list[_Job] = []
        self._outcomes: list[Outcome] = []
        self._num_signals = 0
        self._folders = {run.name: run.run_dir for run in runs}
        self._progress = StepProgress(
            sum(self._total_steps.values()),
            what="sweep",
            done=self._steps_done(),
            seconds_between_lines=_SECONDS_BETWEEN_LINES,
        )

    def run_all(self) -> list[Outcome]:
        """Until all have ended. SIGTERM or Ctrl-C asks each to save and end; twice ends them."""
        with self._signals():
            while self._jobs or (self._waiting and not self._num_signals):
                self._fill_places()
                time.sleep(_POLL_SECONDS)
                for job in [job for job in self._jobs if job.process.poll() is not None]:
                    self._jobs.remove(job)
                    self._report(judge(job.run, job.starts_before), job)
                self._progress.show(self._steps_done(), sum(self._total_steps.values()))
        self._progress.close()
        not_begun = "not started: the sweep was asked to end"
        return self._outcomes + [Outcome(run, False, not_begun) for run in self._waiting]

    def _fill_places(self) -> None:
        taken = {job.slot for job in self._jobs}
        for slot, environment in enumerate(self._environments):
            if slot not in taken and self._waiting and not self._num_signals:
                self._jobs.append(self._start(self._waiting.pop(0), slot, environment))

    def _start(self, run: PlannedRun, slot: int, environment: dict[str, str]) -> _Job:
        state = state_of(run)
        with (run.run_dir / _LOG).open("ab") as log:
            process = subprocess.Popen(
                local_command(run, self._num_processes),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=os.environ | environment,
                # Ctrl-C reaches the sweep alone, and the runs end in order
                start_new_session=True,
                pass_fds=(self._lock,),
            )
        return _Job(run, process, slot, state.num_starts if state else 0)

    def _report(self, outcome: Outcome, job: _Job) -> None:
        self._outcomes.append(outcome)
        # of a run that has ended early, the steps that it did are all there are
        self._total_steps[outcome.run.name] = steps_done(outcome.run.run_dir)
        seconds = tqdm.format_interval(time.monotonic() - job.began)
        tqdm.write(f"{outcome.run.name}: {outcome.text} ({seconds})", file=sys.stderr)

    def _steps_done(self) -> int:
        return sum(
            min(steps_done(folder), self._total_steps[name])
            for name, folder in self._folders.items()
        )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        before = {kind: signal.signal(kind, self._end) for kind in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._num_signals += 1
        for job in self._jobs:
            # the launcher asks the run to save and end; asked again, it ends it at once
            job.process.send_signal(signal.SIGINT)


def local_command(run: PlannedRun, num_processes: int | None) -> list[str]:
    """What starts a run on this machine."""
    launcher = Path(__file__).resolve().parents[2] / "launch" / "local.sh"
    count = [] if num_processes is None else ["-n", str(num_processes)]
    return [str(launcher), str(run.recipe_path), *count]


def state_of(run: PlannedRun) -> RunState | None:
    """What its folder says of it; None when no start reached training.

    Also None when it cannot be read: the next start is refused because of it, and says why.
    """
    try:
        return read_run_state(run.run_dir)
    except ValueError:
        return None


def judge(run: PlannedRun, starts_before: int) -> Outcome:
    """How a start ended, by the run's own state file: exit codes do not survive launchers."""
    state = state_of(run)
    log = run.run_dir / _LOG
    if state is None or state.num_starts == starts_before:
        return Outcome(run, False, f"refused; see {log}\n{_last_error(log)}")
    if state.state == "complete":
        return Outcome(run, True, f"complete ({state.reason})" if state.reason else "complete")
    if state.reason == "train.stop_after_steps":
        return Outcome(run, True, f"stopped after {state.step} steps, as the recipe says")
    if state.state == "stopped":
        return Outcome(run, False, f"stopped and saved at step {state.step} ({state.reason})")
    reason = state.reason or "killed; the next sweep resumes from its newest checkpoint"
    return Outcome(run, False, f"failed; see {log}\n{_indented(reason)}")


def steps_done(run_dir: Path) -> int:
    """The last step in its metrics."""
    try:
        with (run_dir / METRICS_FILE).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            row: Any = json.loads(line)
        except ValueError:
            continue  # truncated, or begun before what was read
        if isinstance(row, dict) and row.get("kind") == "step":
            return int(row["step"])
    return 0


def _last_error(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("error:")]
    return _indented("\n".join(lines[starts[-1] :][:8] if starts else lines[-3:]))


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
