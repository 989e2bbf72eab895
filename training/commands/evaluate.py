"""The verb `evaluate`: held-out loss of an exported run, or benchmarks."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from training.config.arguments import add_overrides

SUMMARY = "held-out loss of an exported run, by entropy band; or benchmarks"
DESCRIPTION = """\
Compute the loss of RUN/export on the run's held-out sets and write RUN/evaluation.json. With
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


def run(options: argparse.Namespace) -> int:
    if options.tasks is not None:
        return _run_tasks(options)
    for name in _TASK_OPTIONS:
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} needs --tasks")
    from training.run.evaluate_run import evaluate_run

    result = evaluate_run(options.run_dir, options.overrides)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(result, indent=1))
    return 0


def _run_tasks(options: argparse.Namespace) -> int:
    """Options that were not given keep the defaults of `TaskOptions`."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed only reads the checkpoint
    from training.tasks.evaluation import TaskOptions, evaluate_tasks

    if options.overrides:
        raise ValueError(f"{options.overrides[0]}: --tasks takes no recipe overrides")
    given = {name: getattr(options, name) for name in _TASK_OPTIONS}
    asked = TaskOptions(
        tasks=tuple(options.tasks.split(",")),
        **{name: value for name, value in given.items() if value is not None},
    )
    if (found := evaluate_tasks(options.run_dir, asked)) is not None:
        path, table = found
        print(f"{table}\n{path}")
    return 0
