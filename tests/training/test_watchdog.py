"""A rank that hangs is noticed within the time set, and the report names it and its line."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_ranks
from tests.training.short_runs import short_recipe
from training.config.recipe import Recipe
from training.ranks.run_state import read_run_state
from training.ranks.watchdog import EXIT_CODE

ROOT = Path(__file__).parents[2]


def train_and_hang(recipe: Recipe, how: str) -> None:
    """Rank 1 makes no progress in the data of its third step."""
    import training.run.run
    from training.data.prefetch import PrefetchingStream

    read = PrefetchingStream.step

    def read_or_hang(stream: PrefetchingStream, step: int) -> Any:
        if stream.split == "train" and step == 2 and os.environ["RANK"] == "1":
            (Path(recipe.run_dir) / "hangs").touch()
            if how == "stopped":
                # what a launcher does in the end, so that the test need not wait for it
                subprocess.Popen(["sh", "-c", f"sleep 6; kill -KILL {os.getpid()}"])
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(60)
        return read(stream, step)

    PrefetchingStream.step = read_or_hang  # type: ignore[method-assign]
    training.run.run.train(recipe)


def seconds_until_noticed(run_dir: Path, rank: int) -> float:
    report = run_dir / f"hang-rank{rank:05d}.txt"
    return report.stat().st_mtime - (run_dir / "hangs").stat().st_mtime


def hanging_recipe(corpus: Path, run_dir: Path) -> Recipe:
    return short_recipe(
        corpus,
        run_dir,
        evaluation={"every_steps": None},
        watchdog={"seconds": 2.0, "record_collectives": 50},
    )


def test_a_rank_that_sleeps_in_its_data_names_itself_and_the_line(small_corpus, tmp_path):
    with pytest.raises(AssertionError, match="rank 1"):
        run_ranks(train_and_hang, hanging_recipe(small_corpus, tmp_path), "asleep", world_size=2)
    assert 1.9 < seconds_until_noticed(tmp_path, 1) < 5.0
    report = (tmp_path / "hang-rank00001.txt").read_text()
    assert "rank 1 has been in phase 'data' after step 2 for 2 seconds" in report
    assert "this is the rank that hangs" in report
    assert "test_watchdog.py" in report
    assert "in read_or_hang" in report
    state = read_run_state(tmp_path)
    assert state.state == "failed"
    assert state.reason.startswith("rank 1: watchdog: rank 1 has been in phase 'data'")
    recorded = pickle.loads((tmp_path / "collectives-rank00001.pickle").read_bytes())["entries"]
    assert len(recorded) == 50  # of more
    assert {entry["profiling_name"].partition(":")[0] for entry in recorded} == {"gloo"}


def test_a_rank_that_is_stopped_is_noticed_by_the_one_that_waits(small_corpus, tmp_path):
    """As with a cut network, the rank to blame can say nothing."""
    with pytest.raises(AssertionError, match="rank 0"):
        run_ranks(train_and_hang, hanging_recipe(small_corpus, tmp_path), "stopped", world_size=2)
    assert 1.9 < seconds_until_noticed(tmp_path, 0) < 5.0
    report = (tmp_path / "hang-rank00000.txt").read_text()
    assert "rank 0 has been in phase 'plan' after step 2" in report
    assert "or that has written no report (stopped, or cut off)" in report
    assert "in sum_over_ranks" in report
    assert not (tmp_path / "hang-rank00001.txt").exists()


def watched(body: str, run_dir: Path, *, seconds: str = "0.5") -> subprocess.Popen[str]:
    """A process that runs `body` under a watchdog."""
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from training.ranks.watchdog import Watchdog\n"
        f"with Watchdog(Path(sys.argv[1]), rank=3, seconds={seconds}, slow_seconds=2.0) as dog:\n"
        "    print('begun', flush=True)\n"
        f"    {body}\n"
        "print('ended well')\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, str(run_dir)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_stderr_and_the_file_say_the_same_and_the_exit_code_is_its_own(tmp_path):
    process = watched("dog.enter('data', step=7, alone=True); time.sleep(30)", tmp_path)
    _, said = process.communicate(timeout=20)
    assert process.returncode == EXIT_CODE
    for text in (said, (tmp_path / "hang-rank00003.txt").read_text()):
        assert "rank 3 has been in phase 'data' after step 7" in text
        assert 'File "<string>", line 6 in <module>' in text


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ("[(dog.enter('forward', step=n), time.sleep(0.1)) for n in range(15)]", "0.5"),
        ("dog.enter('save', slow=True); time.sleep(1.5)", "0.5"),
        ("time.sleep(1.5)", "0.5"),  # starting is slow as well
        ("dog.enter('data'); time.sleep(1.5)", "None"),
    ],
)
def test_progress_slow_phases_and_no_watchdog_end_no_process(tmp_path, body, seconds):
    process = watched(body, tmp_path, seconds=seconds)
    said, errors = process.communicate(timeout=20)
    assert (process.returncode, said) == (0, "begun\nended well\n"), errors


def test_a_report_that_cannot_be_written_still_ends_the_process(tmp_path):
    process = watched("dog.enter('data'); time.sleep(30)", tmp_path / "absent")
    _, said = process.communicate(timeout=20)
    assert process.returncode == EXIT_CODE
    assert "in phase 'data'" in said


def test_time_in_which_the_whole_job_was_suspended_does_not_count(tmp_path):
    """Else `scontrol suspend` would end every run that it is meant to keep."""
    process = watched("dog.enter('data'); time.sleep(2.0)", tmp_path, seconds="1.0")
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.7)
    process.send_signal(signal.SIGCONT)
    said, errors = process.communicate(timeout=20)
    assert (process.returncode, said) == (0, "ended well\n"), errors
