"""Tasks are found by name; what a name cannot mean is said before a model is loaded."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import grids
from tests.docs.markdown import code_blocks
from tests.training.task_files import write_choice_task
from training.metrics.task_results import result_name
from training.tasks.evaluation import TaskOptions
from training.tasks.harness import (
    _OUR_LISTS,
    load_tasks,
    open_task_list,
    permit_code,
    refuse_unknown,
    require_harness,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tasks_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write_choice_task(folder)
    return folder


def test_fewer_documents_than_processes_are_refused(tasks_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    manager = open_task_list(["our_choice"], tasks_dir=tasks_dir)
    assert load_tasks(manager, ["our_choice"], limit=None, world_size=5)
    with pytest.raises(ValueError, match="our_choice: 5 documents are too few for 6"):
        load_tasks(manager, ["our_choice"], limit=None, world_size=6)
    with pytest.raises(ValueError, match="our_choice: 1 documents are too few for 2"):
        load_tasks(manager, ["our_choice"], limit=1, world_size=2)


def test_the_task_of_the_documentation_loads(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "evaluation.md"
    (text,) = code_blocks(page, "yaml")
    (document,) = re.findall(r"`(\{.*?\})`", page.read_text())
    for name, content in (("tasks/mine.yaml", text), ("data/choice.jsonl", document + "\n")):
        Path(name).parent.mkdir()
        Path(name).write_text(content)
    manager = open_task_list(["my_choice"], tasks_dir=Path("tasks"))
    (task,) = load_tasks(manager, ["my_choice"], limit=None, world_size=1)
    (asked,) = task.eval_docs
    assert task.doc_to_text(asked) == "2 + 2 ="
    assert task.doc_to_choice(asked)[task.doc_to_target(asked)] == "4"


# Of 14,000 files, which take 15 seconds to read.
_HARNESS_FOLDERS = (
    *("arc", "benchmarks", "gsm8k", "hellaswag", "humaneval", "ifeval", "mbpp", "minerva_math"),
    *("mmlu/default", "piqa"),
)


@pytest.fixture(scope="module")
def all_tasks(tasks_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Our lists, a folder's tasks and the harness' own; of these all in `make test-all`."""
    import lm_eval.tasks.manager as harness

    with pytest.MonkeyPatch.context() as patch:
        if not grids.WHOLE:
            own, some = Path(harness.__file__).parent, tmp_path_factory.mktemp("harness")
            for name in _HARNESS_FOLDERS:
                shutil.copytree(own / name, some / name)
            patch.setattr(harness, "__file__", str(some / "manager.py"))
        return open_task_list(["paper", "our_choice"], tasks_dir=tasks_dir)


@pytest.mark.parametrize("name", ["paper", "paper_no_code"])
def test_every_benchmark_of_the_ready_lists_is_a_task_of_the_harness(all_tasks, name):
    listed = yaml.safe_load((_OUR_LISTS / f"{name}.yaml").read_text())
    assert listed["group"] == name
    assert set(listed["task"]) <= all_tasks.task_index.keys()
    for member in listed["task"]:
        assert _OUR_LISTS not in all_tasks.task_index[member].yaml_path.parents


def test_tasks_that_run_programs_of_the_model_wait_for_the_users_word(
    all_tasks, monkeypatch, capsys
):
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    with pytest.raises(ValueError, match="humaneval, mbpp: scored by RUNNING programs"):
        permit_code(all_tasks, ["paper"], says=True)
    permit_code(all_tasks, ["paper_no_code"], says=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    permit_code(all_tasks, ["paper"], says=True)
    assert "WARNING: HF_ALLOW_CODE_EVAL=1: humaneval, mbpp RUN" in capsys.readouterr().err


def test_an_unknown_task_names_the_nearest(all_tasks):
    refuse_unknown(all_tasks, ["gsm8k", "our_choice", "paper"])
    with pytest.raises(ValueError, match="no task 'our_choise'; did you mean our_choice"):
        refuse_unknown(all_tasks, ["gsm8k", "our_choise"])
    with pytest.raises(ValueError, match="no task 'hellaswagg'; did you mean hellaswag"):
        refuse_unknown(all_tasks, ["hellaswagg"])


def test_a_folder_of_tasks_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"contains no \*.yaml file"):
        open_task_list(["a"], tasks_dir=tmp_path)
    (tmp_path / "a.yaml").write_text("task: [a\n")
    with pytest.raises(ValueError, match=r"a.yaml: while parsing"):
        open_task_list(["a"], tasks_dir=tmp_path)


def test_a_missing_harness_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ValueError, match=r'pip install "lm-eval\[ifeval,math\]'):
        require_harness()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limit": 0}, "--limit 0: expected at least 1"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"num_fewshot": -1}, "--num-fewshot -1"),
        ({"tasks": ("a", "")}, "expected names"),
        ({"tasks": ("a", "a")}, "each once"),
    ],
)
def test_options_without_a_meaning_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TaskOptions(**{"tasks": ("a",), **changes})


def test_results_of_other_settings_or_steps_never_share_a_file():
    names = {
        result_name(["a", "b"], step=step, num_fewshot=shots, limit=limit)
        for step in (None, 1, 2)
        for shots in (None, 0, 5)
        for limit in (None, 10)
    }
    assert len(names) == 18
    with pytest.raises(ValueError, match="--out FILE"):
        result_name([f"task_{i}" for i in range(40)], step=1, num_fewshot=None, limit=None)
