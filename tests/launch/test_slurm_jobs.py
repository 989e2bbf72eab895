"""Job scripts on a real Slurm: what ends a job for good, sizes, corpora and scores, dry runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from data_prep.shards import open_corpus
from tests.distributed import run_ranks
from tests.launch.shared_runs import REPO_ROOT, shared_recipe, write_recipe
from tests.launch.slurm_cluster import SlurmCluster, needs_slurm, wait_until
from tests.launch.stand_in_trainer import write_python
from training.config.recipe import Recipe

pytestmark = [needs_slurm, pytest.mark.cluster, pytest.mark.slow]
ONE_TASK = ("--nodes=1", "--ntasks=1")
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")
_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as up:
        yield up


@pytest.fixture(scope="module")
def recipe(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Two ranks share each sequence."""
    return shared_recipe(small_corpus, tmp_path_factory.mktemp("jobs") / "run")


@dataclass
class Ended:
    """What became of a job."""

    state: str
    restarts: int
    exit_code: str
    printed: str


@pytest.fixture
def run_job(cluster: SlurmCluster, tmp_path: Path) -> Callable[..., Ended]:
    """Submit a script of launch/slurm and wait for its end."""

    def run(script: str, options: tuple[str, ...], *arguments: object, **environment: str) -> Ended:
        output = tmp_path / "job.out"
        options = (*options, f"--output={output}")
        words = map(str, arguments)
        return _wait(
            cluster, cluster.submit(script, options, *words, environment=environment), output
        )

    return run


def _wait(cluster: SlurmCluster, job_id: str, output: Path) -> Ended:
    job = cluster.wait_for(job_id, *_ENDED, seconds=240)
    return Ended(job["JobState"], int(job["Restarts"]), job["ExitCode"], output.read_text())


@pytest.fixture(scope="module")
def ended(
    cluster: SlurmCluster, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Ended]:
    """Jobs by what happens in them, side by side: none of them computes."""
    folder = tmp_path_factory.mktemp("ended")
    python = str(write_python(folder / "python"))
    jobs = {}
    for how in ("crash", "progress", "stop"):
        path = write_recipe(replace(recipe, run_dir=str(folder / how)), folder / f"{how}.yaml")
        jobs[how] = cluster.submit(
            "train.sbatch",
            (*ONE_TASK, f"--output={folder / how}.out"),
            str(path),
            "train.sequence_parallel_size=1",
            environment={
                "PYTHON": python,
                "HOW": how,
                "ENTRODROP_MAX_RESTARTS": "2",
                "ENTRODROP_MAX_CRASHES": "2",
            },
        )
    state = folder / "stop" / "run_state.json"
    wait_until(state.exists, seconds=60, what="start", told=lambda: str(cluster.job(jobs["stop"])))
    (folder / "stop" / "STOP").touch()
    return {how: _wait(cluster, job, folder / f"{how}.out") for how, job in jobs.items()}


def test_crashes_without_a_new_checkpoint_end_a_job(ended):
    job = ended["crash"]
    assert (job.state, job.restarts) == ("FAILED", 1)
    assert "gave up: 2 crashes in a row without a new checkpoint after step 0" in job.printed


def test_crashes_with_progress_queue_a_job_again_up_to_a_bound(ended):
    job = ended["progress"]
    assert (job.state, job.restarts) == ("FAILED", 2)
    assert "not queued again: ENTRODROP_MAX_RESTARTS is reached" in job.printed


def test_a_stop_file_ends_a_job_for_good(ended):
    job = ended["stop"]
    assert (job.state, job.restarts) == ("COMPLETED", 0)
    assert "Stopped (STOP file)" in job.printed and "queued again" not in job.printed


def test_a_refused_start_ends_a_job_at_once(run_job, recipe, tmp_path):
    """By the ranks, which look at the corpus."""
    path = write_recipe(replace(recipe, run_dir=str(tmp_path / "run")), tmp_path / "r.yaml")
    job = run_job("train.sbatch", TWO_NODES, path, f"data.corpus={tmp_path / 'nowhere'}")
    assert (job.state, job.restarts, job.exit_code) == ("FAILED", 0, "2:0"), job.printed
    ours = [line for line in job.printed.splitlines() if line.startswith("error: ")]
    assert len(ours) == 1, job.printed
    assert "Traceback" not in job.printed and "nowhere" in job.printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ONE_TASK, "1 processes are not a multiple of train.sequence_parallel_size 2"),
        ((*TWO_NODES, "--gpus-per-node=2"), "2 tasks on 2 nodes of 2 GPUs"),
        (("--nodes=1", "--ntasks=2", "--gpus-per-task=1"), "with --gpus-per-task or --gpu-bind"),
        (
            ("--nodes=1", "--ntasks=2", "--gpus-per-node=2", "--gpu-bind=single:1"),
            "with --gpus-per-task or --gpu-bind",
        ),
    ],
)
def test_sizes_that_cannot_work_are_one_message(run_job, recipe, tmp_path, options, message):
    path = write_recipe(recipe, tmp_path / "r.yaml")
    job = run_job("train.sbatch", options, path)
    assert (job.state, job.exit_code) == ("FAILED", "2:0")
    assert job.printed.startswith(f"error: {message}") and job.printed.count("\n") == 1


def test_a_corpus_made_on_two_nodes_is_that_of_one_machine(run_job, small_corpus, tmp_path):
    import json
    import logging

    sources = [Path(module.__file__).parent for module in (json, logging)]
    val_frac = str(open_corpus(small_corpus).manifest.split.val_frac)
    options = ["--train-tokenizer", "bpe", "--vocab-size", "512", "--val-frac", val_frac]
    out = tmp_path / "many"
    job = run_job(
        "prep.sbatch", ("--nodes=2", "--ntasks-per-node=2"), "build", "--input", *sources, *options,
        "--out", out, PYTHON=sys.executable,
    )  # fmt: skip
    assert job.state == "COMPLETED", job.printed
    packed = small_corpus / "pack-64"
    expected = [p for p in _files(small_corpus) if packed not in p.parents]
    assert [p.relative_to(small_corpus) for p in expected] == [
        p.relative_to(out) for p in _files(out)
    ]
    for path in expected:
        assert (out / path.relative_to(small_corpus)).read_bytes() == path.read_bytes(), path


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_scores_made_on_two_nodes_are_those_of_one_machine(run_job, small_corpus, tmp_path):
    from training.run.score import ScoreOptions, score_corpus

    model = _save_model(tmp_path / "model")
    here, there = (shutil.copytree(small_corpus, tmp_path / name) for name in ("here", "there"))
    options = ScoreOptions(
        corpus=here, model=str(model), sequence_tokens=64, micro_batch_samples=32
    )
    run_ranks(score_corpus, options, world_size=2)
    job = run_job(
        "score.sbatch", TWO_NODES, there, "--model", model, "--seq-len", 64,
        "--micro-batch-samples", 32,
    )  # fmt: skip
    assert job.state == "COMPLETED", job.printed
    names = [path.name for path in _files(here / "scores-reference")]
    assert names and names == [path.name for path in _files(there / "scores-reference")]
    for name in names:
        ours, theirs = (folder / "scores-reference" / name for folder in (here, there))
        assert ours.read_bytes() == theirs.read_bytes(), name


def _save_model(folder: Path) -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "qwen3",
        vocab_size=512,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("script", ["train", "prep", "score"])
def test_a_dry_run_prints_what_would_run_with_the_numbers_of_sbatch(
    run_job, recipe, tmp_path, script
):
    path = str(write_recipe(recipe, tmp_path / "r.yaml"))
    arguments, expected = {
        "train": ([path, "--dry-run", "seed=3"], f"-m training train {path} --rank-logs seed=3"),
        "prep": (["--dry-run", "verify", "corpus"], "-m data_prep verify corpus"),
        "score": (["--dry-run", "corpus", "--model", "m"], "-m data_prep score corpus --model m"),
    }[script]
    command = ["bash", f"launch/slurm/{script}.sbatch", *arguments]
    done = subprocess.run(command, cwd=REPO_ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert expected in done.stdout and "outside a job" in done.stdout
    sizes = ("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1")
    job = run_job(f"{script}.sbatch", sizes, *arguments)
    assert job.state == "COMPLETED", job.printed
    assert "# 4 processes on 2 nodes, h[1-2]; job " in job.printed and expected in job.printed
    if script != "prep":
        assert "MASTER_ADDR=h1 MASTER_PORT=2" in job.printed
        assert "srun --kill-on-bad-exit=1 --wait=60 --cpus-per-task=1 --mpi=none " in job.printed


def test_a_job_of_an_installed_package_runs_in_the_folder_that_it_was_submitted_from(
    run_job, recipe, tmp_path
):
    write_recipe(recipe, tmp_path / "r.yaml")
    told = {"ENTRODROP_ROOT": str(REPO_ROOT), "ENTRODROP_WORK_DIR": str(tmp_path)}
    job = run_job("train.sbatch", ("--nodes=2",), "r.yaml", "--dry-run", **told)
    assert job.state == "COMPLETED", job.printed
    assert "-m training train r.yaml --rank-logs" in job.printed
