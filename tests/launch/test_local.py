from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.launch.shared_runs import shared_recipe, state_of, wait_for_steps, write_recipe
from tests.warm_python import warm_python

REPO_ROOT = Path(__file__).resolve().parents[2]
RECIPE = "training/recipes/quickstart.yaml"


def local_sh(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """launch/local.sh as on a machine without a GPU, unless `CUDA_VISIBLE_DEVICES` is given."""
    inherited = {key: value for key, value in os.environ.items() if key != "DS_ACCELERATOR"}
    return subprocess.run(
        ["launch/local.sh", *arguments],
        cwd=REPO_ROOT,
        env=inherited | {"CUDA_VISIBLE_DEVICES": "", "PYTHON": warm_python()} | environment,
        capture_output=True,
        text=True,
        timeout=180,
    )


def test_help_shows_an_example() -> None:
    shown = local_sh("--help")
    assert shown.returncode == 0
    assert "launch/local.sh training/recipes/quickstart.yaml" in shown.stdout


def test_cpu_processes_are_as_many_as_share_a_sequence() -> None:
    shown = local_sh(RECIPE, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "--nproc-per-node=2 -m training train" in shown.stdout
    assert "DS_ACCELERATOR=cpu" in shown.stdout
    shown = local_sh(RECIPE, "--dry-run", "train.sequence_parallel_size=1")
    assert "--nproc-per-node=1" in shown.stdout


def test_every_visible_gpu_gets_a_process() -> None:
    shown = local_sh(RECIPE, "--dry-run", CUDA_VISIBLE_DEVICES="0,1,2,3")
    assert "--nproc-per-node=4" in shown.stdout
    assert "DS_ACCELERATOR" not in shown.stdout


def test_cpu_option_leaves_gpus_alone() -> None:
    shown = local_sh(RECIPE, "--dry-run", "--cpu", CUDA_VISIBLE_DEVICES="0,1,2,3")
    assert "--nproc-per-node=2" in shown.stdout
    assert "DS_ACCELERATOR=cpu" in shown.stdout


def test_processes_share_the_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    shown = local_sh(RECIPE, "--dry-run", "-n", "2", OMP_NUM_THREADS="")
    assert f"OMP_NUM_THREADS={max(cores // 2, 1)} " in shown.stdout


def test_overrides_with_spaces_and_quotes_arrive_whole(tmp_path: Path) -> None:
    shown = local_sh(RECIPE, "--dry-run", f"run_dir={tmp_path}/my run")
    assert shown.returncode == 0, shown.stderr
    assert "my\\ run" in shown.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        (RECIPE, "--accept-changes", "recipe.optimizer.lr", "seed", "train.epochs=3"),
        (RECIPE, "--accept-changes=recipe.optimizer.lr", "train.epochs=3", "--accept-changes=seed"),
        (
            "--accept-changes",
            "recipe.optimizer.lr",
            RECIPE,
            "--accept-changes=seed",
            "train.epochs=3",
        ),
    ],
)
def test_changes_that_a_resume_accepts_reach_the_trainer(arguments: tuple[str, ...]) -> None:
    shown = local_sh("--dry-run", *arguments)
    assert shown.returncode == 0, shown.stderr
    trains = shown.stdout.split("training train --rank-logs ")[1].split()
    assert trains == [
        *(RECIPE, "train.epochs=3", "--accept-changes", "recipe.optimizer.lr", "seed")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "recipe nowhere.yaml: No such file"),
        ([RECIPE, "train.epoch=2"], "did you mean train.epochs?"),
        ([RECIPE, "deepspeed=zero4"], "deepspeed: zero4: No such file or directory; did you mean"),
        ([RECIPE, "-n", "3"], "not a multiple of train.sequence_parallel_size 2"),
        ([RECIPE, "-n", "two"], "not a number of processes"),
        ([RECIPE, "--fast"], "unknown option --fast"),
        ([RECIPE, "-n"], "-n needs a value"),
        ([RECIPE, "--accept-changes", "optimizer.lr=1"], "--accept-changes needs a field"),
        ([RECIPE, "other.yaml"], "two recipes"),
    ],
)
def test_mistakes_are_one_message_before_anything_starts(
    arguments: list[str], message: str
) -> None:
    shown = local_sh("--dry-run", *arguments)
    assert shown.returncode == 2
    assert message in shown.stderr
    assert "Traceback" not in shown.stderr


def test_more_processes_than_gpus_are_refused() -> None:
    shown = local_sh(RECIPE, "--dry-run", "-n", "4", CUDA_VISIBLE_DEVICES="0,1")
    assert shown.returncode == 2
    assert "exceeds the 2 GPUs" in shown.stderr


def test_a_corpus_that_is_not_there_is_one_line_before_any_process_starts(tmp_path: Path) -> None:
    shown = local_sh(RECIPE, f"data.corpus={tmp_path / 'nowhere'}", f"run_dir={tmp_path / 'run'}")
    assert (shown.returncode, shown.stdout) == (2, "")
    (line,) = shown.stderr.splitlines()
    assert line.startswith("error: ") and "nowhere/manifest.json: not found" in line


def test_a_refused_start_says_why_and_that_it_was_refused(
    small_corpus: Path,
    tmp_path: Path,
) -> None:
    changes = [f"data.corpus={small_corpus}", "data.sequence_tokens=64"]
    changes += [f"run_dir={tmp_path / 'run'}", "model.config.vocab_size=100"]
    shown = local_sh(RECIPE, *changes)
    assert shown.returncode == 1
    assert "Traceback" not in shown.stderr
    assert shown.stderr.count("error: ") == 2  # why, and of torchrun which process it was
    assert "model vocabulary 100 is smaller than the corpus's 512" in shown.stderr
    assert "The start was refused or died before training" in shown.stderr


def test_a_signal_stops_every_process_and_leaves_one_line(tmp_path: Path) -> None:
    pid_file = tmp_path / "pids"
    (tmp_path / "waits.py").write_text(
        "import os, time\n"
        f"open({str(pid_file)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
        "time.sleep(60)\n"
    )
    torchrun = [warm_python(), "-m", "launch.torchrun", "--standalone", "--local-addr=127.0.0.1"]
    launcher = subprocess.Popen(
        [*torchrun, "--nproc-per-node=2", str(tmp_path / "waits.py")],
        cwd=REPO_ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not pid_file.exists() or len(pid_file.read_text().split()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    launcher.send_signal(signal.SIGTERM)
    _, printed = launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + signal.SIGTERM
    assert printed.strip().splitlines()[-1] == "stopped by SIGTERM, and all processes with it"
    assert "Traceback" not in printed
    for pid in pid_file.read_text().split():
        assert not Path(f"/proc/{pid}").exists()


def test_a_stopped_run_goes_on_and_completes(small_corpus: Path, tmp_path: Path) -> None:
    """A signal to the script alone, as a scheduler sends it; the verdict is the run's own."""
    recipe = shared_recipe(small_corpus, tmp_path / "run")
    path = write_recipe(recipe, tmp_path / "recipe.yaml")
    command = ["launch/local.sh", str(path), "--cpu"]
    environment = os.environ | {"PYTHON": warm_python()}
    started = subprocess.Popen(
        command, cwd=REPO_ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    wait_for_steps(tmp_path / "run", 15, of=started)
    started.send_signal(signal.SIGTERM)
    _, printed = started.communicate(timeout=120)
    state, step = state_of(tmp_path / "run")
    assert (started.returncode, state) == (0, "stopped"), printed
    assert f"saved step {step} of" in printed
    assert not (tmp_path / "run" / "STOP").exists()
    assert (tmp_path / "run" / "logs" / "rank-00001.log").exists()
    shown = local_sh(str(path), "--cpu", f"train.stop_after_steps={step + 1}")
    assert shown.returncode == 0, shown.stderr
    assert state_of(tmp_path / "run") == ("stopped", step + 1)
