"""run_state.json: the outcome of a run, for launchers; exit codes do not survive them all.

torchrun ends with 1 although every process it was asked to stop ended with 0, and srun and the
deepspeed runner have their own ways. Launchers read this file instead.
"""

from __future__ import annotations

import json
import sys
import uuid
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

from common.durable import atomic_write

RUN_STATE_FILE = "run_state.json"
State = Literal["running", "stopped", "complete", "failed"]
_MAX_REASON_CHARACTERS = 2000


@dataclass(frozen=True)
class RunState:
    """The content of run_state.json."""

    state: State
    """running: since `updated_at`; it stays when a run is killed. stopped: saved, and the next
    start resumes. complete: nothing is left to do. failed: ended by an error."""
    run_id: str
    """Created by the first start in the run folder and kept by all later ones."""
    step: int
    """Optimizer steps in the newest checkpoint, from which the next start resumes."""
    total_steps: int
    """Optimizer steps of the whole run."""
    reason: str | None
    """Why it stopped (SIGTERM, SIGINT, SIGUSR1, STOP file, train.stop_after_steps), why it was
    complete before its last step (train.stop_when), or the message of the error with its rank; null
    while running and when all steps are done."""
    updated_at: str
    """UTC, ISO 8601."""
    num_starts: int
    """Starts that reached training. When a start leaves it unchanged, that start was refused, and
    the other fields describe the one before."""


def read_run_state(run_dir: Path) -> RunState:
    """The outcome of the run; keys of later versions are ignored.

    Raises:
        ValueError: when there is no such file, or it is not a valid one.
    """
    path = run_dir / RUN_STATE_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: no run has started training there") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}{_REMEDY}") from None
    mistake = _mistake(content)
    if mistake:
        raise ValueError(f"{path}: {mistake}{_REMEDY}")
    return RunState(**{field.name: content[field.name] for field in fields(RunState)})


_REMEDY = "; remove the file to continue, the run then gets a new run_id"


def _mistake(content: Any) -> str | None:
    if not isinstance(content, dict):
        return f"expected an object, found {type(content).__name__}"
    missing = [field.name for field in fields(RunState) if field.name not in content]
    if missing:
        return f"lacks {', '.join(missing)}"
    if content["state"] not in get_args(State):
        return f"state is {content['state']!r}, not one of {', '.join(get_args(State))}"
    for name in ("step", "total_steps", "num_starts"):
        if not isinstance(content[name], int):
            return f"{name} is {content[name]!r}, not an integer"
    return None


class RunRecord:
    """Maintains run_state.json: written by rank 0, and by whichever rank fails.

    As a context it records the error that ends the run.
    """

    def __init__(self, run_dir: Path, *, rank: int, total_steps: int) -> None:
        self._run_dir, self._rank, self._total_steps = run_dir, rank, total_steps

    def begin(self, step: int) -> str | None:
        """Record a start from `step`, on rank 0; returns an error message, if any."""
        if self._rank != 0:
            return None
        run_id, num_starts = uuid.uuid4().hex, 0
        try:
            if (self._run_dir / RUN_STATE_FILE).exists():
                before = read_run_state(self._run_dir)
                run_id, num_starts = before.run_id, before.num_starts
            state = RunState(
                state="running",
                run_id=run_id,
                step=step,
                total_steps=self._total_steps,
                reason=None,
                updated_at=_now(),
                num_starts=num_starts + 1,
            )
            _write(self._run_dir, state)
        except (ValueError, OSError) as error:
            return str(error)
        return None

    def saved(self, step: int) -> None:
        """Record that a checkpoint of `step` exists."""
        self._update(step=step)

    def stopped(self, step: int, reason: str) -> None:
        """Record that the run was asked to end and has saved `step`."""
        self._update(state="stopped", step=step, reason=reason)

    def complete(self, step: int, reason: str | None = None) -> None:
        """Record that nothing is left to do and `step` is saved.

        Args:
            reason: why it is over before its last step.
        """
        self._update(state="complete", step=step, reason=reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            message = f"{type(error).__name__}: {error}"
            note_failure(self._run_dir, rank=self._rank, message=message)

    def _update(self, **changes: Any) -> None:
        if self._rank != 0:
            return
        try:
            _write(self._run_dir, replace(read_run_state(self._run_dir), **changes))
        except (ValueError, OSError) as error:
            # a full disk must not end a run that can continue and save later
            print(f"{RUN_STATE_FILE} could not be updated: {error}", file=sys.stderr)


def note_failure(run_dir: Path, *, rank: int, message: str) -> None:
    """Record what ended the run, as far as still possible; the first rank's message is kept.

    The ranks that follow would only report that they lost their connection to it.
    """
    try:
        before = read_run_state(run_dir)
        if before.state == "failed":
            return
        reason = f"rank {rank}: {message}"[:_MAX_REASON_CHARACTERS]
        _write(run_dir, replace(before, state="failed", reason=reason), rank=rank)
    except (ValueError, OSError) as error:
        print(f"{RUN_STATE_FILE} could not be updated: {error}", file=sys.stderr)


def _write(run_dir: Path, state: RunState, *, rank: int = 0) -> None:
    content = asdict(replace(state, updated_at=_now()))
    text = json.dumps(content, indent=1) + "\n"
    atomic_write(run_dir / RUN_STATE_FILE, text, writer=f".rank{rank:05d}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
