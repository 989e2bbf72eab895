"""lm-evaluation-harness: tasks by name, their data, and which may run code."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.hints import did_you_mean

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

_OUR_LISTS = Path(__file__).parent
_INSTALL = 'pip install "lm-eval[ifeval,math]>=0.4.13,<0.5"'
_ALLOW_CODE = "HF_ALLOW_CODE_EVAL"


def require_harness() -> None:
    """Say what to install where the extra is missing.

    Raises:
        ValueError: when it is.
    """
    if find_spec("lm_eval") is None:
        raise ValueError(f"--tasks needs lm-evaluation-harness; install it with: {_INSTALL}")


def open_task_list(names: Sequence[str], *, tasks_dir: Path | None) -> TaskManager:
    """The tasks that can be named: the harness' own, our lists, and those of a folder.

    Raises:
        ValueError: for a name that is not among them, with the nearest ones; for a folder without
            tasks or with a file that is not one.
    """
    from lm_eval.tasks import TaskManager

    folders = [_OUR_LISTS]
    if tasks_dir is not None:
        _check_folder(tasks_dir)
        local = TaskManager(include_path=tasks_dir, include_defaults=False)
        if set(names) <= set(local.all_subtasks):
            return local  # the harness' own are 14,000 files, 15 seconds to read
        folders.append(tasks_dir)
    manager = TaskManager(include_path=folders)
    refuse_unknown(manager, names)
    return manager


def refuse_unknown(manager: TaskManager, names: Sequence[str]) -> None:
    """Suggest the nearest tasks where a requested one does not exist.

    Raises:
        ValueError: for the first of them.
    """
    for name in names:
        if name not in manager.task_index:
            otherwise = "`lm-eval ls tasks` lists them"
            hint = did_you_mean(name, manager.all_tasks, most=3, otherwise=otherwise)
            raise ValueError(f"--tasks: there is no task {name!r}{hint}")


def _check_folder(tasks_dir: Path) -> None:
    """The harness skips what it cannot read; its tasks would be called unknown."""
    from lm_eval.tasks._yaml_loader import load_yaml

    files = sorted(tasks_dir.rglob("*.yaml"))
    if not files:
        raise ValueError(f"--tasks-dir {tasks_dir}: contains no *.yaml file")
    for file in files:
        try:
            load_yaml(file, resolve_func=False)
        except Exception as error:  # of YAML, of the disk, of the harness
            raise ValueError(f"--tasks-dir: {file}: {_one_line(error)}") from None


def permit_code(manager: TaskManager, names: Iterable[str], *, says: bool) -> None:
    """Refuse tasks that run the model's own programs unless the user allows it.

    Args:
        says: whether this process warns of it on stderr.

    Raises:
        ValueError: when the user has not.
    """
    running = sorted(_tasks_that_run_code(manager, names))
    if not running:
        return
    if os.environ.get(_ALLOW_CODE) != "1":
        raise ValueError(
            f"{', '.join(running)}: scored by RUNNING programs that the model writes, with all "
            f"permissions of this user. In a disposable container, set {_ALLOW_CODE}=1; or leave "
            "them out (paper_no_code is the list without them)"
        )
    if says:
        print(
            f"WARNING: {_ALLOW_CODE}=1: {', '.join(running)} RUN programs that the model writes, "
            "with all permissions of this user",
            file=sys.stderr,
            flush=True,
        )


def _tasks_that_run_code(manager: TaskManager, names: Iterable[str]) -> set[str]:
    """Found without importing a task's own code: that would already run it."""
    from lm_eval.tasks._index import Kind

    running: set[str] = set()
    seen: set[str] = set()
    left: list[Any] = list(names)
    while left:
        member = left.pop()
        if isinstance(member, dict):  # a member with its own changes
            left.append(member.get("task", member.get("group")))
        elif isinstance(member, list):
            left += member
        elif isinstance(member, str) and member not in seen and member in manager.task_index:
            seen.add(member)
            entry = manager.task_index[member]
            config = entry.cfg or {}
            if config.get("unsafe_code"):
                running.add(member)
            if entry.kind is Kind.TAG:
                left += sorted(entry.tags)
            elif entry.kind is Kind.GROUP:
                left.append(config.get("task"))
    return running


def load_tasks(
    manager: TaskManager, names: Sequence[str], *, limit: int | None, world_size: int
) -> list[Task | Group]:
    """Read the data of the tasks, from the disk or, where it is not there, from the internet.

    Raises:
        ValueError: when a task's data or a package is missing, two names contain the same task, or
            a task has fewer documents than there are processes.
    """
    loaded: list[Task | Group] = []
    for name in names:
        try:
            found = manager.load([name])
        except Exception as error:  # whatever the data set, its host or the task's code raises
            raise ValueError(f"task {name}: {_one_line(error)}{_remedy(error)}") from None
        loaded += [found["groups"][name]] if name in found["groups"] else found["tasks"].values()
        for task_name, task in found["tasks"].items():
            num_documents = min(len(task.eval_docs), limit or sys.maxsize)
            if num_documents < world_size:
                raise ValueError(
                    f"task {task_name}: {num_documents} documents are too few for {world_size} "
                    "processes; each needs one"
                )
    manager.load(loaded)  # refuses a task that is requested twice
    return loaded


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def _remedy(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"; what the paper's tasks need comes with: {_INSTALL}"
    if isinstance(error, OSError):  # also what datasets raises for a host out of reach
        return (
            ". Data that is not on this machine is downloaded: load the task once where there is "
            "internet access, and copy its HF_HOME; or use a task of --tasks-dir"
        )
    return ""


def quieten(*, is_main: bool) -> None:
    """Keep the harness' warnings, on one rank only."""
    logging.getLogger("lm_eval").setLevel(logging.WARNING if is_main else logging.ERROR)
