"""The outcome of a run, from its run_state.json: exit codes do not survive launchers.

Usage: python -m launch.verdict starts RUN_DIR            how many starts it has had
       python -m launch.verdict judge RUN_DIR STARTS      the verdict on the start after STARTS
The second prints `VERDICT STEP REASON` on stdout and a sentence on stderr, and exits with 0 when
the run is complete or was stopped. Verdicts: complete, stopped, failed, killed, refused. REASON is
that of a stop, as in run_state.json, and otherwise empty.
"""

from __future__ import annotations

import sys
from pathlib import Path

from training.ranks.rank_logs import FOLDER
from training.ranks.run_state import RUN_STATE_FILE, RunState, read_run_state


def read_if_begun(run_dir: Path) -> RunState | None:
    """None before the first start that reached training."""
    return read_run_state(run_dir) if (run_dir / RUN_STATE_FILE).exists() else None


def judge(state: RunState | None, run_dir: Path, *, starts_before: int) -> tuple[str, str]:
    """The verdict on the last start, and a sentence that says what to do."""
    if state is None or state.num_starts == starts_before:
        return "refused", "The start was refused or died before training; its message is above."
    reached = f"step {state.step} of {state.total_steps}"
    if state.state == "complete":
        why = f" ({state.reason})" if state.reason else ""
        return "complete", f"Complete: {reached}, in {run_dir}{why}."
    if state.state == "stopped":
        return "stopped", f"Stopped ({state.reason}) and saved {reached}; start again to resume."
    logs = f"What each rank printed is in {run_dir / FOLDER}."
    if state.state == "failed":
        return "failed", f"Failed: {state.reason}\n{logs} The next start resumes from {reached}."
    return (
        "killed",
        f"Killed: processes ended without a message (kill -9, out of memory, a lost host). {logs} "
        f"The next start resumes from {reached}.",
    )


def main(arguments: list[str]) -> int:
    """Print one of the two."""
    run_dir = Path(arguments[1])
    try:
        state = read_if_begun(run_dir)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments[0] == "starts":
        print(state.num_starts if state else 0)
        return 0
    verdict, sentence = judge(state, run_dir, starts_before=int(arguments[2]))
    reason = state.reason if state and verdict == "stopped" else None
    print(verdict, state.step if state else 0, reason or "")
    print(sentence, file=sys.stderr)
    return 0 if verdict in ("complete", "stopped") else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
