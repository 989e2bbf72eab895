"""RUN/tasks/*.json: the names of results of benchmarks, and reading them."""

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
    """A name of its own for what gives numbers of its own: `piqa+gsm8k.limit-10.step-400.json`.

    Raises:
        ValueError: when so many tasks are asked for that no file can have the name.
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
            f"--tasks: {len(tasks)} names are too many for the name of a file; give one, --out FILE"
        )
    return name


def read_results(run_dir: Path) -> list[dict[str, Any]]:
    """All results of a run, by step and then by the tasks that were asked for.

    Raises:
        ValueError: for a file that is none.
    """
    results = []
    for path in sorted((run_dir / TASKS_FOLDER).glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}; remove it to go on") from None
        if not isinstance(result, dict) or result.get("kind") != TASKS_FOLDER:
            raise ValueError(f"{path}: no result of tasks; remove it to go on")
        results.append(result)
    return sorted(results, key=lambda result: (result["step"] or 0, result["tasks"]))
