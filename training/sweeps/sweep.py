"""The sweep verb: every combination of some values of a recipe, run and compared."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from common.locks import try_lock
from training.config.load import dump_recipe
from training.ranks.dist import Layout
from training.ranks.run_state import RUN_STATE_FILE
from training.reports.report import comparison_text, write_report
from training.run.start import check_start
from training.sweeps.grid import (
    Mistakes,
    PlannedRun,
    find_other_corpus,
    find_other_recipe,
    parse_axes,
    plan_runs,
)
from training.sweeps.jobs import LocalRuns, Outcome, local_command, state_of, steps_done
from training.sweeps.slurm import queued_job, slurm_command, submit


@dataclass(frozen=True)
class SweepOptions:
    """What the command line says."""

    recipe: Path
    overrides: Sequence[str]
    varied: Sequence[str]
    """Texts `a.b=1,2,3`."""
    seeds: str | None = None
    num_jobs: int = 1
    """How many runs are in parallel."""
    num_processes: int | None = None
    """Of each run; None leaves it to the launcher."""
    slurm: str | None = None
    """Options of sbatch; None runs on this machine."""
    is_dry: bool = False


def run_sweep(options: SweepOptions) -> int:
    """Run what is not complete yet, then compare all of it; the exit code of the command.

    Raises:
        ValueError: before the first run starts, with the mistakes of all combinations.
    """
    axes = parse_axes(options.varied, options.seeds)
    if options.slurm is not None and options.num_processes is not None:
        raise ValueError("-n is for this machine; for jobs use --slurm='--ntasks=...'")
    mistakes = Mistakes()
    runs = plan_runs(options.recipe, options.overrides, axes, mistakes=mistakes)
    total_steps = _check(runs, options, mistakes)
    mistakes.raise_all()
    environments = _environments(runs[0], options)
    folder = runs[0].run_dir.parent
    todo = [run for run in runs if not _is_complete(run)]
    print(f"{len(runs)} runs in {folder}, {len(runs) - len(todo)} of them complete", flush=True)
    if options.is_dry:
        _print_plan(runs, options)
        return 0
    with _lock(folder) as lock:
        for run in todo:
            run.run_dir.mkdir(parents=True, exist_ok=True)
            run.recipe_path.write_text(dump_recipe(run.recipe), encoding="utf-8")
        if options.slurm is None:
            local = LocalRuns(
                todo,
                total_steps=total_steps,
                environments=environments,
                num_processes=options.num_processes,
                lock=lock,
            )
            outcomes = local.run_all()
        else:
            outcomes = [submit(run, options.slurm) for run in todo]
    return _finish(runs, outcomes, folder, is_local=options.slurm is None)


def _check(runs: list[PlannedRun], options: SweepOptions, mistakes: Mistakes) -> dict[str, int]:
    """Open what each run needs, and check that its folder is its own; returns its steps."""
    total_steps = {}
    for run in runs:
        other = find_other_recipe(run)
        if other:
            mistakes.add(run.name, other)
            continue
        # the bytes of the corpus are compared when the run starts, once per run is enough
        recipe = replace(run.recipe, data=replace(run.recipe.data, verify="sizes"))
        sp_size = recipe.train.sequence_parallel_size
        gpus = 0 if options.slurm is not None else len(_gpus()) // max(options.num_jobs, 1)
        layout = Layout(
            rank=0,
            world_size=options.num_processes or gpus or sp_size,
            sp_size=sp_size,
            device=torch.device("cpu"),
        )
        try:
            start = check_start(recipe, layout)
            others = {f"pack_of_{name}": of for name, of in start.data.other_fingerprints.items()}
            other = find_other_corpus(run, packs={"pack": start.data.pack.fingerprint, **others})
            total_steps[run.name] = start.plan.total_steps
        except (ValueError, OSError) as error:
            other = str(error)
        if other:
            mistakes.add(run.name, other)
    return total_steps


def _environments(run: PlannedRun, options: SweepOptions) -> list[dict[str, str]]:
    """What each of the parallel runs gets of this machine, in equal parts.

    Raises:
        ValueError: when there are fewer GPUs than parallel runs.
    """
    num_jobs, gpus = options.num_jobs, _gpus()
    if num_jobs < 1:
        raise ValueError(f"--jobs {num_jobs}: expected at least 1")
    common = {"PYTHON": sys.executable}
    if gpus:
        each = len(gpus) // num_jobs
        if each == 0:
            raise ValueError(
                f"--jobs {num_jobs}: there are {len(gpus)} GPUs, and each run needs one"
            )
        parts = [gpus[i * each : (i + 1) * each] for i in range(num_jobs)]
        return [common | {"CUDA_VISIBLE_DEVICES": ",".join(part)} for part in parts]
    num_processes = options.num_processes or run.recipe.train.sequence_parallel_size
    threads = max(1, len(os.sched_getaffinity(0)) // (num_jobs * num_processes))
    common["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or str(threads)
    return [common for _ in range(num_jobs)]


def _gpus() -> list[str]:
    """Names of the visible GPUs, as CUDA_VISIBLE_DEVICES gives them."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",")[:count] if named else [str(i) for i in range(count)]


def _is_complete(run: PlannedRun) -> bool:
    state = state_of(run)
    return state is not None and state.state == "complete"


def _print_plan(runs: list[PlannedRun], options: SweepOptions) -> None:
    for run in runs:
        state = state_of(run)
        if state is None:
            is_new = not (run.run_dir / RUN_STATE_FILE).exists()
            what = "new" if is_new else f"will be refused: its {RUN_STATE_FILE} cannot be read"
        elif state.state == "complete":
            what = "complete"
        else:
            what = f"resumes from step {state.step}"
        if options.slurm is None:
            command = local_command(run, options.num_processes)
        else:
            job = queued_job(run)
            what = f"queued as job {job}" if job else what
            command = slurm_command(run, options.slurm)
        print(f"{run.name}: {what}\n    {shlex.join(command)}")


@contextmanager
def _lock(folder: Path) -> Iterator[int]:
    """Refuse a second sweep in the folder, also while runs of a killed one are still alive.

    Raises:
        ValueError: when there is one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".sweep.lock").open("w") as file:
        if not try_lock(file.fileno()):
            raise ValueError(
                f"{folder}: in use by another sweep, or by runs that it started; "
                "wait for them or end them"
            )
        yield file.fileno()


def _finish(
    runs: list[PlannedRun], outcomes: list[Outcome], folder: Path, *, is_local: bool
) -> int:
    """Print what went wrong, or was queued, and compare what there is."""
    unwell = [outcome for outcome in outcomes if not outcome.is_well]
    begun = [run.run_dir for run in runs if steps_done(run.run_dir)]
    if begun:
        page = write_report(begun, folder / "report")
        print(f"\n{comparison_text(begun)}\n\n{page}")
    if not is_local:
        for outcome in outcomes:
            print(f"{outcome.run.name}: {outcome.text}")
        print("Run the same command later to see their progress and update the report.")
    elif unwell:
        print(f"\n{len(unwell)} of {len(runs)} runs are not complete:", file=sys.stderr)
        for outcome in unwell:
            print(f"  {outcome.run.name}: {outcome.text}", file=sys.stderr)
        print("Run the same command to resume them.", file=sys.stderr)
    return 1 if unwell else 0
