"""The verb `evaluate`: held-out loss of an exported run, or benchmarks."""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

from training.config.arguments import add_overrides

SUMMARY = "held-out loss of an exported run, by entropy band; or benchmarks"
DESCRIPTION = """\
Compute the loss of RUN/export on the run's held-out sets, print a summary, and write all of it,
also by entropy band, to RUN/evaluation.json. With --export: of another export of the run. With
--tasks: run tasks of lm-evaluation-harness on the run's newest checkpoint, or on an export, and
write RUN/tasks/*.json. Works on any number of processes.

  torchrun --standalone --nproc-per-node=8 -m training evaluate RUN --tasks gsm8k,piqa
"""
_TASK_OPTIONS = ("tasks_dir", "num_fewshot", "limit", "batch_size", "checkpoint", "out")


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "run_dir", type=Path, metavar="RUN", help="run folder; with --tasks also an export"
    )
    add_overrides(verb)
    verb.add_argument(
        "--export",
        type=Path,
        metavar="FOLDER",
        help="another export of the run, such as a mean of checkpoints; printed, not stored",
    )
    verb.add_argument("--json", action="store_true", help="print all results as JSON instead")
    tasks = verb.add_argument_group("benchmarks", "docs/evaluation.md says what they need")
    tasks.add_argument(
        "--tasks",
        metavar="A,B,C",
        help="names of lm-evaluation-harness, or paper: all tasks of the paper",
    )
    tasks.add_argument("--tasks-dir", type=Path, metavar="DIR", help="YAML files of further tasks")
    tasks.add_argument(
        "--num-fewshot", type=int, metavar="N", help="few-shot examples (default: the task's own)"
    )
    tasks.add_argument(
        "--limit", type=int, metavar="N", help="use the first N documents of each task"
    )
    tasks.add_argument("--batch-size", type=int, metavar="N", help="per process (default: 8)")
    tasks.add_argument(
        "--checkpoint", metavar="WHICH", help="best, last, step-N or a folder (default: last)"
    )
    tasks.add_argument("--out", type=Path, metavar="FILE", help="default: a file in RUN/tasks")


def name_accelerator() -> None:
    """Before DeepSpeed is loaded, which otherwise searches for one and warns."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def run(options: argparse.Namespace) -> int:
    if options.tasks is not None:
        return _run_tasks(options)
    for name in _TASK_OPTIONS:
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} needs --tasks")
    name_accelerator()
    from training.run.evaluate_run import evaluate_run

    result = evaluate_run(options.run_dir, options.overrides, exported=options.export)
    if os.environ.get("RANK", "0") == "0":
        if options.json:
            print(json.dumps(result, indent=1))
        else:
            is_own = _is_of_own_data(options.run_dir, options.overrides)
            print(_summary(result, options.run_dir, is_own=is_own, exported=options.export))
    return 0


def _is_of_own_data(run_dir: Path, overrides: list[str]) -> bool:
    from training.config.load import KEPT_RECIPE, load_recipe
    from training.run.evaluate_run import measures_alike, recipe_for_evaluation

    own = load_recipe(run_dir / KEPT_RECIPE, [])
    return measures_alike(recipe_for_evaluation(run_dir, overrides), own)


def _summary(result: dict[str, Any], run_dir: Path, *, is_own: bool, exported: Path | None) -> str:
    """Each set in a line, and where the rest is."""
    from training.metrics.heldout_rows import losses_by_set, results_by_set

    first = losses_by_set(_first_evaluation(run_dir)) if is_own else {}
    of = "averaged or mixed weights" if "mix" in result else f"step {result['step']}"
    lines = [f"held-out loss of {of}, in nats per token"]
    if first:
        lines[0] += "; in parentheses the change since before the first step"
    found = results_by_set(result)
    if "sets" in result and "num_targets" not in result:
        found["weighted mean"] = result
    width = max(map(len, found))
    for name, of_set in found.items():
        loss, before = of_set["loss"], first.get(name, math.nan)
        shown = "none" if loss is None else f"{loss:.4f}"
        if loss is not None and math.isfinite(before):
            shown += f" ({loss - before:+.4f})"
        targets = f"  {of_set['num_targets']:,} targets" if "num_targets" in of_set else ""
        lines.append(f"  {name:{width}}  {shown}{targets}")
    path = run_dir / "evaluation.json"
    kept = str(path)
    if not is_own:
        kept = f"not stored, being of other data than {path}; --json prints all"
    elif exported is not None and exported.resolve() != (run_dir / "export").resolve():
        kept = f"not stored, being of {exported}; --json prints all"
    return "\n".join([*lines, kept])


def _first_evaluation(run_dir: Path) -> dict[str, Any]:
    """The row of the one before the first step; empty if there is none."""
    from training.metrics.file import METRICS_FILE, read_metrics

    path = run_dir / METRICS_FILE
    rows = read_metrics(path) if path.exists() else []
    found = (row for row in rows if row["kind"] == "evaluation" and row["step"] == 0)
    return next(found, {})


def _run_tasks(options: argparse.Namespace) -> int:
    """Options that were not given keep the defaults of `TaskOptions`."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed only reads the checkpoint
    from training.tasks.evaluation import TaskOptions, evaluate_tasks

    if options.json:
        raise ValueError(
            "--json: results of --tasks are written as JSON, to the path that it prints"
        )
    if options.overrides:
        raise ValueError(f"{options.overrides[0]}: --tasks takes no recipe overrides")
    if options.export is not None:
        raise ValueError(f"--export: --tasks takes the folder itself: evaluate {options.export}")
    given = {name: getattr(options, name) for name in _TASK_OPTIONS}
    asked = TaskOptions(
        tasks=tuple(options.tasks.split(",")),
        **{name: value for name, value in given.items() if value is not None},
    )
    if (found := evaluate_tasks(options.run_dir, asked)) is not None:
        path, table = found
        print(f"{table}\n{path}")
    return 0
