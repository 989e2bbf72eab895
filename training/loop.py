"""The training loop, made of explicit calls: start or resume, step, evaluate, save."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import PretrainedConfig

from data_prep.shards import Mixture, PackIndex, describe, open_corpus
from training.checkpoint import Progress, load_checkpoint, newest_complete, save_checkpoint
from training.config import Recipe
from training.corpus_threshold import CorpusThreshold, corpus_threshold
from training.data import SampleStream
from training.dist import agree, init_layout, raise_together
from training.engine import Engine, build_engine, training_dtype
from training.entropy_cache import EntropyCache
from training.entropy_source import EntropySource, choose_source, open_cache, open_scores
from training.evaluation import Bands, evaluate, freeze_bands, heldout_stream
from training.lagged_dropout import LaggedDropout, lagged_dropout
from training.metrics import MetricsWriter
from training.model import check_heads, resolve_model_config
from training.plan import Plan, choose_mixture, derive_plan, run_identity
from training.recipe_file import dump_recipe
from training.sample_order import SampleOrder
from training.step import train_step
from training.token_dropout import check_mask_token


def train(recipe: Recipe) -> Path:
    """Run a recipe from the start or from its newest checkpoint; every rank calls it.

    Returns:
        The run folder.

    Raises:
        ValueError: for a recipe, corpus or layout that does not work, before weights exist.
    """
    layout = init_layout(sp_size=recipe.train.sequence_parallel_size)
    corpus = open_corpus(recipe.data.corpus)
    pack = corpus.open_pack(recipe.data.sequence_tokens)
    mixture = choose_mixture(recipe, pack)
    scores = open_scores(recipe, pack)
    plan = derive_plan(recipe, pack, mixture, layout)
    if recipe.evaluation.every_steps is not None:
        heldout_stream(pack, recipe, layout)  # an empty split is refused before weights exist
    dtype = training_dtype(recipe)
    model_config = resolve_model_config(recipe.model, vocab_size=corpus.vocab_size, dtype=dtype)
    check_heads(model_config, sp_size=layout.sp_size)
    check_mask_token(recipe, vocab_size=model_config.get_text_config().vocab_size)
    run_dir = Path(recipe.run_dir)
    newest = agree(newest_complete(run_dir / "checkpoints") if layout.is_main else None)
    if newest and recipe.resume == "never":
        raise ValueError(f"run_dir {run_dir} holds a run already; choose another, or resume: auto")

    raise_together(_make_run_folder(run_dir) if layout.is_main else None)

    engine = build_engine(recipe, model_config, layout=layout, num_micro_steps=plan.micro_steps)
    identity = run_identity(recipe, pack, layout, dtype=dtype, scores=scores)
    progress = Progress(step=0, tokens=0)
    cache = open_cache(recipe, pack, path=run_dir / "entropy_cache.f16")
    if cache:
        raise_together(_clear(cache) if layout.is_main else None)
    if newest:
        progress = load_checkpoint(engine, newest, identity=identity, cache=cache)
    facts = asdict(plan) | {"parameters": engine.num_parameters, "pack": pack.fingerprint}
    # not before here: a start that is refused leaves an existing run as it was
    raise_together(_describe_run(run_dir, recipe, model_config) if layout.is_main else None)
    if layout.is_main:
        _print_start(recipe, facts, mixture, progress)
    with MetricsWriter(
        run_dir, total_steps=plan.total_steps, start_step=progress.step, enabled=layout.is_main
    ) as metrics:
        if progress.step == 0:
            metrics.log_run(facts)
        source = choose_source(recipe, engine, pack, scores=scores, cache=cache)
        run = _Run(
            recipe=recipe,
            plan=plan,
            engine=engine,
            source=source,
            lagged=lagged_dropout(recipe, threshold=progress.threshold),
            corpus=corpus_threshold(
                recipe, source, pack, mixture, layout, threshold=progress.threshold
            ),
            cache=cache,
            pack=pack,
            mixture=mixture,
            metrics=metrics,
            identity=identity,
        )
        _run_steps(run, progress)
    dist.barrier()
    return run_dir


@dataclass(frozen=True)
class _Run:
    """What stays the same over the steps of one start."""

    recipe: Recipe
    plan: Plan
    engine: Engine
    source: EntropySource
    lagged: LaggedDropout | None
    corpus: CorpusThreshold | None
    cache: EntropyCache | None
    pack: PackIndex
    mixture: Mixture
    metrics: MetricsWriter
    identity: dict[str, Any]


def _run_steps(run: _Run, progress: Progress) -> None:
    recipe, plan = run.recipe, run.plan
    stream = SampleStream(
        pack=run.pack,
        split="train",
        layout=run.engine.layout,
        total_samples=plan.total_samples,
        samples_per_step=plan.samples_per_step,
        micro_batch_samples=recipe.train.micro_batch_samples,
        order=SampleOrder(run.mixture, seed=recipe.seed),
    )
    bands = None
    if recipe.evaluation.every_steps is not None:
        heldout = heldout_stream(run.pack, recipe, run.engine.layout)
        bands = freeze_bands(
            run.engine,
            heldout,
            num_bands=recipe.evaluation.num_bands,
            folder=Path(recipe.run_dir) / "heldout_bands",
            reuse=progress.step > 0,
        )
        if progress.step == 0:
            _evaluate(run, heldout, bands, progress)
    evaluate_every, save_every = recipe.evaluation.every_steps, recipe.checkpoint.every_steps
    last_step = min(plan.total_steps, recipe.train.stop_after_steps or plan.total_steps)
    while progress.step < last_step:
        progress = _one_step(run, stream, progress)
        is_last = progress.step == last_step
        if bands and evaluate_every and (is_last or progress.step % evaluate_every == 0):
            _evaluate(run, heldout, bands, progress)
        if is_last or (save_every and progress.step % save_every == 0):
            save_checkpoint(
                run.engine,
                Path(recipe.run_dir) / "checkpoints",
                progress=progress,
                identity=run.identity,
                keep_last=recipe.checkpoint.keep_last,
                cache=run.cache,
            )


def _one_step(run: _Run, stream: SampleStream, progress: Progress) -> Progress:
    began = time.monotonic()
    row, num_tokens = train_step(
        run.recipe,
        run.engine,
        stream,
        source=run.source,
        lagged=run.lagged,
        corpus=run.corpus,
        step=progress.step,
        done_frac=progress.tokens / run.plan.planned_tokens,
    )
    seconds = time.monotonic() - began
    keeper = run.lagged or run.corpus
    threshold = keeper.threshold if keeper else None
    progress = Progress(progress.step + 1, progress.tokens + num_tokens, threshold)
    speed = {"tokens_per_second": num_tokens / seconds, "seconds": seconds}
    run.metrics.log_step(_position(run.plan, progress) | row | speed)
    return progress


def _evaluate(run: _Run, heldout: SampleStream, bands: Bands, progress: Progress) -> None:
    result = evaluate(run.engine, heldout, bands)
    run.metrics.log_evaluation(_position(run.plan, progress) | result)


def _position(plan: Plan, progress: Progress) -> dict[str, Any]:
    samples = min(progress.step * plan.samples_per_step, plan.total_samples)
    return {
        "step": progress.step,
        "tokens": progress.tokens,
        "epoch": samples / plan.samples_per_epoch,
    }


def _make_run_folder(run_dir: Path) -> str | None:
    """The text of a mistake, if there is one: known before the weights are."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"run_dir {run_dir}: {error.strerror}"
    return None


def _clear(cache: EntropyCache) -> str | None:
    """The text of a mistake, if there is one."""
    try:
        cache.clear()
    except OSError as error:
        return f"{cache.path}: {error.strerror}"
    return None


def _describe_run(run_dir: Path, recipe: Recipe, model_config: PretrainedConfig) -> str | None:
    """Keep the resolved recipe and the model's configuration; the text of a mistake, if any.

    With them export and evaluate need neither the recipe file nor the hub.
    """
    try:
        (run_dir / "recipe.resolved.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
        model_config.save_pretrained(run_dir / "model")
    except OSError as error:
        return f"run_dir {run_dir}: {error.strerror}"
    return None


def _print_start(
    recipe: Recipe, facts: dict[str, Any], mixture: Mixture, progress: Progress
) -> None:
    where = f"resumed after step {progress.step}" if progress.step else "from the start"
    print(f"{recipe.run_dir}: {where}; the resolved recipe is kept there", flush=True)
    for name, value in facts.items():
        shown = f"{value:,}" if isinstance(value, int) else value
        print(f"  {name.replace('_', ' '):24} {shown}", flush=True)
    if len(mixture) > 1:
        for line in describe(mixture):
            print(f"  {'domain':24} {line}", flush=True)
