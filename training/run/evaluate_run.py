"""Score an exported run on its held-out sets, on any number of processes."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.commands import command
from common.durable import atomic_write
from common.hints import no_folder
from data_prep.shards import PackIndex, open_corpus
from training.checkpoints.adapter_folder import is_adapter_folder, read_adapter
from training.checkpoints.identity import BASE_WEIGHTS
from training.checkpoints.manifest import (
    find_corruption_together,
    newest_complete,
    read_manifest,
)
from training.config.load import KEPT_RECIPE, load_recipe
from training.config.recipe import Recipe
from training.config.sections import Model
from training.data.stream import SampleStream
from training.metrics.file import finite
from training.model.causal_lm import warn_of_remote_code
from training.model.engine import Engine, build_engine
from training.model.fingerprint import engine_fingerprint
from training.ranks.dist import Layout, init_layout, together
from training.ranks.launcher_env import whole_number
from training.run.best import evaluation_row
from training.run.evaluation import Bands, bands_of_stream, evaluate
from training.run.fit import fitting_config, refuse_misfit
from training.run.heldout import bands_folder, heldout_packs, heldout_streams

_SP_KEY = "train.sequence_parallel_size"


def evaluate_run(
    run_dir: Path, overrides: list[str], *, exported: Path | None = None
) -> dict[str, Any]:
    """Held-out loss of an export of a run, on the run's own held-out sets by the bands it froze.

    Fewer processes than the run had share a sequence as far as they can; the numbers are the same.

    Args:
        run_dir: a run folder with an export.
        overrides: keys of the recipe, for example `data.corpus=data/other`.
        exported: where it is, if not in `run_dir/export`.

    Returns:
        The result, which rank 0 also writes to `run_dir/evaluation.json` when it is of the run's
        own data, and of `run_dir/export`.

    Raises:
        ValueError: when there is no export, it is damaged, or there is no held-out data.
    """
    recipe = recipe_for_evaluation(run_dir, overrides)
    is_kept = exported is None or exported.resolve() == (run_dir / "export").resolve()
    exported = exported or run_dir / "export"
    remedy = _export(run_dir) if is_kept else f"{_export(run_dir)} --out {exported}"
    is_adapter = is_adapter_folder(exported)
    if not (exported / "config.json").exists() and not is_adapter:
        raise ValueError(f"{exported} is missing; run: {remedy}")
    if not is_adapter:
        model = dataclasses.replace(recipe.model, pretrained=str(exported), config=None)
        recipe = dataclasses.replace(recipe, model=model, adapter=None)
    layout = init_layout(sp_size=recipe.train.sequence_parallel_size)
    if (broken := find_corruption_together(exported, layout)) is not None:
        raise ValueError(f"the export is damaged: {broken}; run: {remedy}")
    manifest = read_manifest(exported)
    if layout.is_main and is_kept:
        with suppress(OSError):  # a run that goes on may remove it at this moment
            _warn_of_newer(run_dir, step=manifest["step"])
    evaluation = RunEvaluation.open(run_dir, recipe, layout)
    if is_adapter:
        _put_adapter(evaluation.engine, exported, recipe.model)
    facts = {key: manifest[key] for key in ("step", "mix") if key in manifest}
    result = facts | {"corpus": recipe.data.corpus, "pack": evaluation.pack.fingerprint}
    result = finite(result | evaluation.row())
    own = load_recipe(run_dir / KEPT_RECIPE, [])
    if layout.is_main and is_kept and measures_alike(recipe, own):
        atomic_write(run_dir / "evaluation.json", json.dumps(result, indent=1) + "\n")
    return result


def _put_adapter(engine: Engine, exported: Path, model: Model) -> None:
    """Beside the base that it was trained with."""
    if engine_fingerprint(engine) != read_manifest(exported)[BASE_WEIGHTS]:
        raise ValueError(
            f"model.pretrained {model.pretrained} no longer holds the weights that this run began "
            "with; put those back"
        )
    is_main = engine.layout.is_main
    engine.put(together(lambda: read_adapter(exported) if is_main else None))


def recipe_for_evaluation(run_dir: Path, overrides: list[str]) -> Recipe:
    """A run's recipe; fewer processes than it had share a sequence as far as they can."""
    if not run_dir.is_dir():
        raise ValueError(no_folder(run_dir))
    if not (run_dir / KEPT_RECIPE).exists():
        raise ValueError(f"{run_dir} is not a run folder: {KEPT_RECIPE} is missing")
    recipe = load_recipe(run_dir / KEPT_RECIPE, overrides)
    if any(override.startswith(f"{_SP_KEY}=") for override in overrides):
        return recipe
    sp_size = math.gcd(recipe.train.sequence_parallel_size, whole_number("WORLD_SIZE"))
    train = dataclasses.replace(recipe.train, sequence_parallel_size=sp_size)
    return dataclasses.replace(recipe, train=train)


@dataclass(frozen=True)
class RunEvaluation:
    """An engine without an optimizer, and the held-out sets of a run with the bands it froze."""

    engine: Engine
    recipe: Recipe
    pack: PackIndex
    streams: dict[str, SampleStream]
    bands: dict[str, Bands | None]

    @classmethod
    def open(cls, run_dir: Path, recipe: Recipe, layout: Layout) -> RunEvaluation:
        """Load the weights that the recipe names; every rank calls it.

        Raises:
            ValueError: for a model that does not fit the corpus, or when there is no held-out data.
        """
        if layout.is_main:
            warn_of_remote_code(recipe.model)
        corpus = open_corpus(recipe.data.corpus)
        pack = corpus.open_pack(recipe.data.sequence_tokens)
        streams = heldout_streams(recipe, heldout_packs(recipe, pack), layout)
        model_config = fitting_config(recipe, corpus, sp_size=layout.sp_size)
        refuse_misfit(recipe, corpus, model_config, layout)
        engine = build_engine(recipe, model_config, layout=layout, num_micro_steps=1)
        bands = {
            name: _bands(bands_folder(run_dir, recipe, name), stream)
            for name, stream in streams.items()
        }
        return cls(engine, recipe, pack, streams, bands)

    def row(self) -> dict[str, Any]:
        """The losses of the weights that the engine has now."""
        results = {
            name: evaluate(self.engine, stream, self.bands[name])
            for name, stream in self.streams.items()
        }
        return evaluation_row(results, self.recipe.evaluation)


def measures_alike(recipe: Recipe, own: Recipe) -> bool:
    """Whether the numbers are those of the run's own held-out data."""
    # how often a run evaluates does not decide what is measured
    evaluation = dataclasses.replace(recipe.evaluation, every_steps=own.evaluation.every_steps)
    decides = recipe.evaluation.decides_best, own.evaluation.decides_best  # the order of sets may
    return (recipe.data, evaluation) == (own.data, own.evaluation) and decides[0] == decides[1]


def _export(run_dir: Path) -> str:
    return command(f"training export {run_dir}")


def _warn_of_newer(run_dir: Path, *, step: int) -> None:
    """One line on stderr when the run has gone on since its export."""
    newest = newest_complete(run_dir / "checkpoints")
    if newest is not None and (newer := read_manifest(newest)["step"]) != step:
        print(
            f"WARNING: {run_dir / 'export'} is of step {step}, the newest checkpoint of step "
            f"{newer}; to evaluate that one: {_export(run_dir)}",
            file=sys.stderr,
            flush=True,
        )


def _bands(folder: Path, stream: SampleStream) -> Bands | None:
    """Those that the run froze, unless they are of other samples."""
    return bands_of_stream(folder, stream) if folder.exists() else None
