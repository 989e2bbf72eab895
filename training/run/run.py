"""The start of a run: everything checked, then built, then resumed; `run_steps` does the rest."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from common.durable import atomic_write
from data_prep.shards import Mixture, describe
from training.checkpoints.identity import (
    BASE_WEIGHTS,
    find_other_model,
    refuse_differences,
    run_identity,
)
from training.checkpoints.load import load_checkpoint
from training.checkpoints.manifest import newest_verified, read_manifest
from training.checkpoints.mirror import fetch_newest
from training.checkpoints.model_folder import MODEL_FOLDER
from training.checkpoints.progress import Progress
from training.checkpoints.reshard import must_reshard
from training.checkpoints.saver import Saver
from training.config.load import KEPT_RECIPE, dump_recipe
from training.config.recipe import Recipe
from training.data.joined_pack import join, join_scores
from training.metrics.tracker_clients import TrackedRun
from training.metrics.trackers import TENSORBOARD, Trackers, new_key
from training.metrics.writer import MetricsWriter
from training.model.causal_lm import warn_of_remote_code
from training.model.ds_config import zero_stage
from training.model.engine import Engine, build_engine
from training.model.fingerprint import engine_fingerprint
from training.ranks.determinism import choose_determinism
from training.ranks.dist import Layout, broadcast_from_rank0, init_layout, raise_together, together
from training.ranks.run_folder import lock_run_dir
from training.ranks.run_state import RunRecord
from training.ranks.stopping import StopRequests
from training.ranks.watchdog import Watchdog, record_collectives
from training.regularisers.base import RunParts
from training.regularisers.entropy_cache import EntropyCache
from training.regularisers.entropy_source import open_cache
from training.regularisers.table import model_regularisation
from training.run.loop import Run, run_steps
from training.run.profile import StepProfiler
from training.run.schedule import warmup_steps
from training.run.start import Start, check_start_together
from training.run.surprises import print_surprises
from training.run.teacher import join_predictions, make_average, make_teacher


def train(recipe: Recipe, *, accepted: Collection[str] = ()) -> Path:
    """Run a recipe from the start or from its newest checkpoint; every rank calls it.

    Args:
        accepted: dotted names of what may differ from the run to resume.

    Returns:
        The run folder.

    Raises:
        ValueError: for a recipe, corpus or layout that does not work, before weights exist.
    """
    choose_determinism(recipe.determinism)
    record_collectives(recipe.watchdog.record_collectives)
    layout = init_layout(
        sp_size=recipe.train.sequence_parallel_size,
        timeout_seconds=recipe.watchdog.group_timeout_seconds,
    )
    if layout.is_main:
        warn_of_remote_code(recipe.model)
    start = check_start_together(recipe, layout)
    identity = run_identity(
        recipe,
        start.data.pack,
        dtype=start.dtype,
        scores=start.data.scores,
        others=start.data.other_fingerprints,
    )
    run_dir = Path(recipe.run_dir)
    with lock_run_dir(run_dir, layout):
        copied = None
        if recipe.checkpoint.mirror:
            copied = fetch_newest(recipe, layout, identity=identity, accepted=accepted)
        newest = newest_verified(run_dir / "checkpoints", layout)
        if newest and recipe.resume == "never":
            raise ValueError(
                f"run_dir {run_dir} holds a run already; choose another, or resume: auto"
            )
        if newest:
            saved = read_manifest(newest)["identity"]
            refuse_differences(newest, saved, identity, accepted=accepted)
            find_other = partial(
                find_other_model,
                run_dir / "model",
                start.model_config,
                model=recipe.model,
                accepted=accepted,
            )
            raise_together(together(lambda: find_other() if layout.is_main else None))
        _run(recipe, layout, start, identity, newest, accepted, copied)
    return run_dir


def _run(
    recipe: Recipe,
    layout: Layout,
    start: Start,
    identity: dict[str, Any],
    newest: Path | None,
    accepted: Collection[str],
    copied: str | None,
) -> None:
    """Build, resume from `newest` if there is one, and run the steps.

    Args:
        copied: key of the run whose copies are at `checkpoint.mirror`.
    """
    run_dir, plan, data = Path(recipe.run_dir), start.plan, start.data
    samples = join(data.pack, data.replay)
    scores = join_scores(data.scores, data.replay, data.replay_scores)
    with Watchdog(run_dir, rank=layout.rank, **asdict(recipe.watchdog)) as watchdog:
        engine = build_engine(
            recipe,
            start.model_config,
            layout=layout,
            num_micro_steps=plan.micro_steps * recipe.num_passes,
            regularisation=model_regularisation(recipe),
            loads_universal=newest is not None
            and must_reshard(
                read_manifest(newest), layout, zero_stage=zero_stage(recipe.deepspeed)
            ),
            watchdog=watchdog,
        )
        identity = identity | _base_of(recipe, engine, newest)
        progress = Progress(step=0, tokens=0)
        cache = open_cache(recipe, samples, path=run_dir / "entropy_cache.f16")
        if cache:
            raise_together(_clear(cache) if layout.is_main else None)
        average = make_average(recipe, engine, plan)
        teacher = make_teacher(
            recipe,
            engine,
            average,
            pack=samples,
            num_domain_samples=data.pack.num_samples(),
            stored=join_predictions(data.predictions, data.replay),
        )
        if newest:
            progress = load_checkpoint(
                engine,
                newest,
                identity=identity,
                accepted=accepted,
                cache=cache,
                average=average,
            )
        progress = _with_key(recipe, progress, copied)
        facts = _facts(recipe, start, engine)
        # not earlier: a start that is refused leaves an existing run unchanged
        raise_together(_begin(recipe, start, facts, progress, newest) if layout.is_main else None)
        record = RunRecord(run_dir, rank=layout.rank, total_steps=plan.total_steps)
        raise_together(record.begin(progress.step))
        # record within requests: an error is noted before a launcher's SIGTERM can end the process
        with (
            StopRequests(run_dir, layout) as requests,
            record,
            MetricsWriter(
                run_dir,
                total_steps=plan.total_steps,
                start_step=progress.step,
                enabled=layout.is_main,
                trackers=_trackers(recipe, facts, progress),
            ) as metrics,
        ):
            if progress.step == 0:
                metrics.log_run(facts)
            run = Run(
                recipe=recipe,
                plan=plan,
                parts=RunParts(engine, samples, start.mixture, scores, cache),
                metrics=metrics,
                identity=identity,
                accepted=accepted,
                record=record,
                requests=requests,
                saver=Saver(
                    engine,
                    run_dir / "checkpoints",
                    identity=identity,
                    settings=recipe.checkpoint,
                    cache=cache,
                    average=average,
                    record=record,
                ),
                heldout=start.heldout,
                average=average,
                teacher=teacher,
                profiler=StepProfiler(recipe.profile, run_dir, enabled=layout.is_main),
            )
            run.saver.mirror.begin(progress.run_key, run_dir, identity)
            if newest:
                run.saver.mirror.add(newest)  # if the last start could not send it
            run_steps(run, progress)
            dist.barrier()


def _begin(
    recipe: Recipe, start: Start, facts: dict[str, Any], progress: Progress, newest: Path | None
) -> str | None:
    """Write down and print what is run; returns an error message, if any."""
    if error := _describe_run(Path(recipe.run_dir), recipe, start.model_files):
        return error
    _print_start(recipe, facts, start.mixture, progress)
    print_surprises(recipe, start, newest)
    return None


def _base_of(recipe: Recipe, engine: Engine, newest: Path | None) -> dict[str, Any]:
    """What an identity says of the weights that the run began with, before a checkpoint is loaded.

    A resume takes its weights from the checkpoint: only what stays near the base, and an adapter,
    need it again.
    """
    if recipe.model.pretrained is None:
        return {}
    if newest is not None and not recipe.needs_base:
        return {BASE_WEIGHTS: read_manifest(newest)["identity"].get(BASE_WEIGHTS)}
    return {BASE_WEIGHTS: engine_fingerprint(engine)}


def _facts(recipe: Recipe, start: Start, engine: Engine) -> dict[str, Any]:
    """What is derived of a run, to be printed at its start and kept with it."""
    device, total_steps = engine.layout.device, start.plan.total_steps
    taught_by = dict.fromkeys(
        f"{stored.manifest.model}, {stored.num_kept} likeliest tokens"
        for stored in filter(None, start.data.predictions)
    )
    return asdict(start.plan) | {
        "warmup_steps": warmup_steps(total_steps, recipe.schedule.warmup_frac),
        "parameters": engine.num_parameters,
        **({"trained_parameters": engine.num_trained} if recipe.adapter else {}),
        **({"taught_by": " and ".join(taught_by)} if taught_by else {}),
        "pack": start.data.pack.fingerprint,
        **{f"pack_of_{name}": found for name, found in start.data.other_fingerprints.items()},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def _with_key(recipe: Recipe, progress: Progress, copied: str | None) -> Progress:
    """With the key of its earlier starts, or a new one, where trackers or copies need it."""
    if set(recipe.trackers) <= {TENSORBOARD} and not recipe.checkpoint.mirror:
        return progress
    key = progress.run_key or copied or broadcast_from_rank0(new_key())
    return replace(progress, run_key=key)


def _trackers(recipe: Recipe, facts: dict[str, Any], progress: Progress) -> Trackers:
    run_dir = Path(recipe.run_dir)
    if set(recipe.trackers) <= {TENSORBOARD}:
        return Trackers(recipe.trackers)
    assert progress.run_key
    config = {"recipe": asdict(recipe), "facts": facts}
    return Trackers(recipe.trackers, TrackedRun(progress.run_key, run_dir.name, run_dir, config))


def _clear(cache: EntropyCache) -> str | None:
    """Returns an error message, if any."""
    try:
        cache.clear()
    except OSError as error:
        return f"{cache.path}: {error.strerror}"
    return None


def _describe_run(run_dir: Path, recipe: Recipe, model_files: dict[str, bytes]) -> str | None:
    """Save the resolved recipe and what goes with the weights; returns an error message, if any.

    With them export and evaluate need neither the recipe file nor the hub, nor the corpus.
    """
    try:
        atomic_write(run_dir / KEPT_RECIPE, dump_recipe(recipe))
        for name, content in model_files.items():
            atomic_write(run_dir / MODEL_FOLDER / name, content)
    except OSError as error:
        return f"run_dir {run_dir}: {error.strerror}"
    return None


def _print_start(
    recipe: Recipe, facts: dict[str, Any], mixture: Mixture, progress: Progress
) -> None:
    where = f"resumed after step {progress.step}" if progress.step else "from the start"
    print(f"{recipe.run_dir}: {where}; the resolved recipe is saved there", flush=True)
    for name, value in facts.items():
        shown = f"{value:,}" if isinstance(value, int) else value
        # scores belong to a corpus, in any packing; reports and sweeps know them by the longer name
        label = name.removeprefix("pack_of_") if name.endswith("_scores") else name
        print(f"  {label.replace('_', ' '):24} {shown}", flush=True)
    if len(mixture) > 1:
        for line in describe(mixture):
            print(f"  {'domain':24} {line}", flush=True)
