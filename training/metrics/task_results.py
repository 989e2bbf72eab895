"""RUN/tasks/*.json: file names of benchmark results, and reading them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TASKS_FOLDER = "tasks"
_MAX_NAME = 120


def result_name(
    tasks: Sequence[str], *, step: int | None, num_fewshot: int | None, limit: int | None
) -> str:
    """A distinct name for all that changes the numbers: `piqa+gsm8k.limit-10.step-400.json`.

    Raises:
        ValueError: when the names of the tasks do not fit into a file name.
    """
    parts = ["+".join(tasks)]
    if num_fewshot is not None:
        parts.append(f"shots-{num_fewshot}")
    if limit is not None:
        parts.append(f"limit-{limit}")
    if step is not None:
        parts.append(f"step-{step}")
    name = ".".join(parts).replace("/", "_") + ".json"
    if len(name) > _MAX_NAME:
        raise ValueError(
            f"--tasks: {len(tasks)} names are too many for a file name; set one with --out FILE"
        )
    return name


def read_results(run_dir: Path) -> list[dict[str, Any]]:
    """All results of a run, by step and then by the requested tasks.

    Raises:
        ValueError: for a file that is not a result.
    """
    results = []
    for path in sorted((run_dir / TASKS_FOLDER).glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}; remove it to continue") from None
        if not isinstance(result, dict) or result.get("kind") != TASKS_FOLDER:
            raise ValueError(f"{path}: not a task result; remove it to continue")
        results.append(result)
    return sorted(results, key=lambda result: (result["step"] or 0, result["tasks"]))
