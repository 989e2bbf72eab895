"""Commands about runs work as the pages have them, on a run of the quickstart's name but small.

A block marked bash is one that a test runs; those that take long or a GPU are marked console.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest
import yaml

from data_prep.packing.pack import pack
from tests.docs import test_data_commands, test_launching, test_sft
from tests.docs.markdown import PAGES, REPO_ROOT, code_blocks
from tests.training.layouts import tiny_recipe
from tests.warm_python import warm_path, warm_python

OURS = (
    "reliability.md",
    "evaluation.md",
    "reports.md",
    "recipes.md",
    "method.md",
    "forgetting.md",
)
RUN_ELSEWHERE = {
    "README.md": "tests/launch/test_quickstart.py and CI itself",
    "tour.md": "tests/docs/test_readme.py",
    "CONTRIBUTING.md": "CI itself",
}


def test_every_page_with_commands_is_run_by_a_test() -> None:
    with_commands = {page.name for page in PAGES if code_blocks(page, "bash")}
    assert with_commands == {
        *OURS,
        *RUN_ELSEWHERE,
        *test_data_commands.PAGES,
        *test_launching.PAGES,
        *test_sft.PAGES,
    }


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, small_corpus: Path) -> Path:
    """A folder like this repository's whose quickstart takes seconds."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("common", "data_prep", "launch", "ds_configs"):
        (folder / name).symlink_to(REPO_ROOT / name)
    recipes = folder / "training" / "recipes"
    recipes.mkdir(parents=True)
    for path in (REPO_ROOT / "training").iterdir():
        if path.name not in ("recipes", "__pycache__"):
            (folder / "training" / path.name).symlink_to(path)
    recipe = yaml.safe_load((REPO_ROOT / "training" / "recipes" / "quickstart.yaml").read_text())
    recipe["model"]["config"] = tiny_recipe().model.config | {"vocab_size": 512}
    recipe["train"] |= {"global_batch_tokens": 1024, "micro_batch_samples": 2, "max_steps": 4}
    recipe["evaluation"] = {"every_steps": 2, "max_samples": 8}
    (recipes / "quickstart.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "data").mkdir()
    shutil.copytree(small_corpus, folder / "data" / "quickstart")
    pack(folder / "data" / "quickstart", seq_len=256)
    shutil.copytree(small_corpus, folder / "data" / "notes")
    pack(folder / "data" / "notes", seq_len=2048)
    return folder


def run(command: str, folder: Path) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def environment() -> dict[str, str]:
    return os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHON": warm_python(),
        "PATH": warm_path(),
    }


def blocks(page: str) -> list[str]:
    return code_blocks(REPO_ROOT / "docs" / page, "bash")


@pytest.mark.slow
def test_commands_about_a_run_work_one_after_the_other(project: Path) -> None:
    start_again, ask_to_stop = blocks("reliability.md")
    shown = run(start_again, project)
    assert "Complete: step 4 of 4" in shown
    run(ask_to_stop, project)
    assert (project / "runs" / "quickstart" / "STOP").exists()

    (export_and_evaluate,) = blocks("evaluation.md")
    assert "held-out loss of step 4, " in run(export_and_evaluate, project)

    build_domain, adapt, look_and_export, interpolate, export = blocks("forgetting.md")
    run(build_domain, project)
    assert "general" in run(adapt, project)
    assert "\n  general  " in run(look_and_export, project)
    report = project / "runs" / "shell" / "report" / "index.html"
    assert "Learnt and forgotten" in report.read_text()
    assert "lowest at " in run(interpolate, project)
    assert "held-out loss of averaged or mixed weights, " in run(export, project)
    assert (project / "runs" / "shell" / "between" / "config.json").exists()

    draw, compare, tensorboard, sweep = blocks("reports.md")
    run(draw, project)
    assert (project / "runs" / "quickstart" / "report" / "index.html").exists()
    run(compare, project)
    assert "plain" in (project / "runs" / "compared" / "index.html").read_text()
    assert_serves(tensorboard, project)
    assert run(sweep, project).count(": new") == 4


def assert_serves(command: str, folder: Path) -> None:
    """TensorBoard, on a port that it chooses, shows the two runs."""
    server = subprocess.Popen(
        [warm_python(), *shlex.split(command)[1:], "--port", "0", "--load_fast=false"],
        cwd=folder,
        env=environment() | {"PYTHONUNBUFFERED": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stderr is not None
        line = next(line for line in server.stderr if "http://" in line)
        address = line[line.index("http://") :].split()[0]
        with urllib.request.urlopen(f"{address}data/runs", timeout=60) as answer:
            assert "quickstart" in answer.read().decode()
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
def test_a_key_changed_on_the_command_line_trains(project: Path) -> None:
    (command,) = blocks("recipes.md")
    assert "Complete: step 1 of 1" in run(
        f"{command.strip()} run_dir=runs/changed train.max_steps=1", project
    )


@pytest.mark.slow
def test_a_corpus_is_scored_by_a_model_of_the_name_on_the_page(project: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    model = project / "Qwen" / "Qwen3-0.6B"
    config = AutoConfig.for_model(**tiny_recipe().model.config | {"vocab_size": 512})
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    AutoTokenizer.from_pretrained(project / "data" / "notes" / "tokenizer").save_pretrained(model)
    (command,) = blocks("method.md")
    assert "scores-reference" in run(command, project)
