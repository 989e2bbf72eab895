"""Benchmarks of lm-evaluation-harness on a run or an export, on any number of processes."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from common.durable import atomic_write
from training.metrics.task_results import TASKS_FOLDER, result_name
from training.ranks.dist import broadcast_from_rank0, sum_over_ranks, together
from training.ranks.launcher_env import whole_number
from training.ranks.lost_gpus import refuse_lost_gpus
from training.tasks.harness import (
    load_tasks,
    open_task_list,
    permit_code,
    quieten,
    require_harness,
)
from training.tasks.weights import Weights, find_weights

if TYPE_CHECKING:
    from training.tasks.whole_model import WholeModel

T = TypeVar("T")


@dataclass(frozen=True)
class TaskOptions:
    """Which tasks to run on which weights."""

    tasks: tuple[str, ...]
    tasks_dir: Path | None = None
    num_fewshot: int | None = None
    """Few-shot examples; None: the task's own number."""
    limit: int | None = None
    """Only the first documents of each task."""
    batch_size: int = 8
    checkpoint: str | None = None
    """newest, best, or a folder; for a run alone."""
    out: Path | None = None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("--num-fewshot", self.num_fewshot, 0),
            ("--limit", self.limit, 1),
            ("--batch-size", self.batch_size, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"{name} {value}: expected at least {least}")
        if not all(self.tasks) or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"--tasks {','.join(self.tasks)}: expected names, each once")


def evaluate_tasks(target: Path, options: TaskOptions) -> tuple[Path, str] | None:
    """Run tasks on the weights of a run or an export; every rank calls it.

    Every rank holds the whole model and evaluates its share of the documents. A checkpoint is
    exported first, by rank 0 on the CPU, to a folder that is removed once all have loaded it.

    Returns:
        On rank 0 the file of results and a table of them.

    Raises:
        ValueError: the same on every rank, for what cannot be evaluated.
    """
    require_harness()
    _join_ranks()
    is_main = dist.get_rank() == 0
    quieten(is_main=is_main)
    manager = together(lambda: open_task_list(options.tasks, tasks_dir=options.tasks_dir))
    permit_code(manager, options.tasks, says=is_main)
    with ExitStack() as until_loaded:
        on_main = together(
            lambda: _weights_and_out(target, options, until_loaded) if is_main else None
        )
        agreed = broadcast_from_rank0(on_main)
        assert agreed is not None
        weights, out = agreed
        loaded = together(
            lambda: load_tasks(
                manager, options.tasks, limit=options.limit, world_size=dist.get_world_size()
            )
        )
        lm: Any = together(lambda: _load_model(weights.folder, options))
    began = time.monotonic()
    answers = _ask(lm, loaded, manager, options)
    (num_cut,) = sum_over_ranks(torch.tensor([lm.num_cut]))
    if not is_main:
        return None
    if num_cut:
        _warn_of_cut(num_cut, max_tokens=lm.max_length)
    result = _describe(target, options, weights, lm) | _summary(answers)
    result["num_requests_cut"] = num_cut
    result |= {"versions": _versions(), "seconds": time.monotonic() - began}
    atomic_write(out, json.dumps(result, indent=1) + "\n")
    if weights.run_dir and (options.num_fewshot, options.limit) == (None, None):
        _show_in_tensorboard(weights.run_dir, result)
    return out, _table(answers)


def _join_ranks() -> None:
    """A CPU-only process group, unless this process is in one; no rank waits in it while tasks run.

    One rank may take hours longer than the others.
    """
    if dist.is_initialized():
        return
    patience = timedelta(days=7)
    if "RANK" in os.environ:
        dist.init_process_group("gloo", timeout=patience)
    else:
        dist.init_process_group(
            "gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1, timeout=patience
        )


def _weights_and_out(
    target: Path, options: TaskOptions, until_loaded: ExitStack
) -> tuple[Weights, Path]:
    """What to evaluate, exported if it has to be, and where the results go."""
    weights = find_weights(target, checkpoint=options.checkpoint)
    if options.out is None and weights.run_dir is None:
        raise ValueError(
            f"{target} holds no weights that a run has trained as they are: set where the results "
            "go with --out FILE"
        )
    name = result_name(
        options.tasks, step=weights.step, num_fewshot=options.num_fewshot, limit=options.limit
    )
    folder = (weights.run_dir or Path()) / TASKS_FOLDER
    if weights.checkpoint is not None:
        from training.checkpoints.choice import explaining_removals
        from training.checkpoints.export import Form, export_run, load_run_recipe

        folder.mkdir(exist_ok=True)
        scratch = until_loaded.enter_context(
            tempfile.TemporaryDirectory(prefix=".weights-", dir=folder)
        )
        chosen = [str(weights.checkpoint)]
        with explaining_removals(target):
            exported = export_run(
                target,
                checkpoints=chosen,
                form=Form(merge=load_run_recipe(target).adapter is not None),
                out=Path(scratch) / "export",
            )
        weights = weights.exported_to(exported)
    return weights, options.out or folder / name


def _load_model(folder: Path, options: TaskOptions) -> WholeModel:
    from training.tasks.whole_model import WholeModel

    device = torch.device("cpu")
    if torch.cuda.is_available():
        # without a launcher, what a shell holds is of another job
        local_rank = whole_number("LOCAL_RANK") if "RANK" in os.environ else 0
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        refuse_lost_gpus()
    return WholeModel(folder, device=device, batch_size=options.batch_size)


def _ask(
    lm: WholeModel, loaded: Sequence[Any], manager: Any, options: TaskOptions
) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    try:
        answers: dict[str, Any] | None = simple_evaluate(
            model=lm,
            tasks=list(loaded),
            task_manager=manager,
            num_fewshot=options.num_fewshot,
            limit=options.limit,
            bootstrap_iters=1000,
            confirm_run_unsafe_code=True,  # `permit_code` has asked
        )
    except AssertionError as error:
        if not str(error):
            raise
        # its way to refuse a task that needs more tokens than the model takes
        raise ValueError(f"lm-evaluation-harness: {error}") from None
    return answers or {}


def _warn_of_cut(num_cut: int, *, max_tokens: int) -> None:
    print(
        f"WARNING: {num_cut} requests are longer than the {max_tokens} tokens that the model "
        "takes: the harness has dropped their beginning, few-shot examples or the question "
        "itself; scores with and without such requests are not comparable",
        file=sys.stderr,
        flush=True,
    )


def _describe(
    target: Path, options: TaskOptions, weights: Weights, lm: WholeModel
) -> dict[str, Any]:
    return {
        "kind": TASKS_FOLDER,
        "step": weights.step,
        "tokens": weights.tokens,
        "heldout_loss": weights.heldout_loss,
        "tasks": list(options.tasks),
        "model": str(target),
        "settings": {
            "num_fewshot": options.num_fewshot,
            "limit": options.limit,
            "batch_size": options.batch_size,
            "num_processes": dist.get_world_size(),
            "dtype": str(lm.model.dtype).removeprefix("torch."),
            "max_tokens": lm.max_length,
            "tokens_put_around": lm.tok_encode(""),
        },
    }


def _summary(answers: dict[str, Any]) -> dict[str, Any]:
    """The results of the harness, without what only describes this machine."""
    return {
        "results": {name: _numbers(row) for name, row in answers["results"].items()},
        "groups": {name: _numbers(row) for name, row in answers.get("groups", {}).items()},
        "num_fewshot": answers["n-shot"],
        "num_documents": {name: row["effective"] for name, row in answers["n-samples"].items()},
        "task_versions": answers["versions"],
        "task_hashes": {name: _hash(rows) for name, rows in answers["samples"].items()},
    }


def _numbers(row: dict[str, Any]) -> dict[str, float | None]:
    """Metrics and standard errors, as in `acc,none`; null for NaN."""
    return {
        key: float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
        for key, value in row.items()
        if "," in key
    }


def _hash(samples: list[dict[str, Any]]) -> str:
    """As the harness hashes documents, prompts and targets, whatever rank had which."""
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    ordered = sorted(samples, key=lambda one: (filters.index(one["filter"]), one["doc_id"]))
    parts = (one["doc_hash"] + one["prompt_hash"] + one["target_hash"] for one in ordered)
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _versions() -> dict[str, str]:
    packages = ("lm-eval", "datasets", "torch", "transformers")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _show_in_tensorboard(run_dir: Path, result: dict[str, Any]) -> None:
    """In a folder separate from the training's: TensorBoard follows one writer per folder."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run_dir / "tensorboard" / TASKS_FOLDER)) as writer:
        for task, row in (result["results"] | result["groups"]).items():
            for key, value in row.items():
                if value is not None and "_stderr," not in key:
                    metric = key.replace(",none", "").replace(",", "_")
                    writer.add_scalar(f"tasks/{task}/{metric}", value, result["step"])


def _table(answers: dict[str, Any]) -> str:
    from lm_eval.utils import make_table

    tables = [make_table(answers)]
    if answers.get("groups"):
        tables.append(make_table(answers, "groups"))
    return "\n".join(str(table) for table in tables)
