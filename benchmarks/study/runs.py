"""One run of a study: train, score the best and the last weights, return a results line."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.study.base import base_identity
from benchmarks.study.corpora import Folders, canaries_of
from benchmarks.study.jobs import BASE_ARM, Job
from benchmarks.study.recipes import adapting_recipe
from benchmarks.study.results import Row
from benchmarks.study.scoring import (
    Scorer,
    TokenScores,
    completed_share,
    heldout_pieces,
    mean_nll,
    memorised,
)
from benchmarks.study.settings import Base, Setting
from benchmarks.study.tasks import ask
from data_prep.shards import open_corpus
from data_prep.tokenizing.tokenizer import load_tokenizer
from training.checkpoints.manifest import newest_complete, read_manifest
from training.checkpoints.mixing import Mix, Weights, interpolate
from training.metrics.file import METRICS_FILE, read_metrics
from training.model.ds_config import training_dtype
from training.run.run import train


def run_job(job: Job, setting: Setting, folders: Folders) -> Row:
    """Run the job, or resume it if it was started before."""
    size = next(size for size in setting.sizes if size.name == job.size)
    began, cpu = time.monotonic(), time.process_time()
    measured = _score_base(job, setting, size, folders)
    if job.arm != BASE_ARM:
        measured = _adapt(job, setting, size, folders)
    spent = {
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }
    started_from = {
        "base": base_identity(size, folders),
        "setting": setting.identity(job.domain),
    }
    return job.as_row() | started_from | measured | spent


def _score_base(job: Job, setting: Setting, size: Base, folders: Folders) -> Row:
    if job.arm != BASE_ARM:
        return {}
    export = folders.base(size.name) / "export"
    scorer = _Knowledge(job, setting, size, folders, config_folder=export)
    return {"final": scorer.of(_base_weights(export))}


def _base_weights(export: Path) -> Weights:
    from transformers import AutoModelForCausalLM

    weights: Weights = AutoModelForCausalLM.from_pretrained(
        export, dtype=torch.float32
    ).state_dict()
    return weights


def _adapt(job: Job, setting: Setting, size: Base, folders: Folders) -> Row:
    pack = open_corpus(folders.slice(job.domain, job.seed)).open_pack(setting.sequence_tokens)
    recipe = adapting_recipe(
        setting,
        size,
        folders,
        domain=job.domain,
        seed=job.seed,
        num_samples=pack.num_samples("train"),
        name=job.folder_name,
        overrides=job.overrides(),
    )
    run_dir = train(recipe)
    last = newest_complete(run_dir / "checkpoints")
    assert last is not None
    best = _best(run_dir)
    averaged = recipe.ema is not None and recipe.ema.decides_best
    weights = {
        folder: Mix((folder,), averaged=averaged).load(
            recipe.model, dtype=torch.float32, adapter=recipe.adapter
        )
        for folder in {last, best}
    }
    scorer = _Knowledge(job, setting, size, folders, config_folder=run_dir / "model")
    scored = {folder: scorer.of(weights[folder]) for folder in weights}
    metrics = read_metrics(run_dir / METRICS_FILE)
    steps = [row for row in metrics if row["kind"] == "step"]
    measured = {
        "curve": _curve(metrics, averaged=averaged),
        "realised_drop_rate": round(float(np.mean([s["drop_rate_realised"] for s in steps])), 4),
        "train_loss": round(float(np.mean([s["loss"] for s in steps[-10:]])), 4),
        "num_steps": len(steps),
        "final": scored[last],
        "best": scored[best],
    }
    if setting.base_shares:
        base = _base_weights(folders.base(size.name) / "export")
        measured["between"] = {
            f"{share:g}": scorer.losses_of(interpolate(base, weights[best], tuned_share=share))
            for share in setting.base_shares
        }
    return measured


def _best(run_dir: Path) -> Path:
    """The checkpoint with the lowest held-out loss of the two that are kept."""
    found = sorted((run_dir / "checkpoints").glob("step-*"))
    return min(found, key=lambda folder: read_manifest(folder)["heldout_loss"])


def _curve(metrics: list[Row], *, averaged: bool) -> dict[str, Any]:
    """Held-out losses over epochs, overall and by band, from before the first step on.

    Args:
        averaged: the losses of the averaged weights; bands are those of the trained ones.
    """
    rows = [row for row in metrics if row["kind"] == "evaluation"]
    loss = "ema_loss" if averaged else "loss"
    return {
        "epoch": [round(row["epoch"], 3) for row in rows],
        "loss": [round(row.get(loss, row["loss"]), 5) for row in rows],
        "bands": [[round(band["loss"], 4) for band in row["bands"]] for row in rows],
        "edges_nats": [round(band["to_nats"], 4) for band in rows[0]["bands"][:-1]],
    }


class _Knowledge:
    """Scores of weights on the held-out texts, words, canaries and questions of a job."""

    def __init__(
        self, job: Job, setting: Setting, size: Base, folders: Folders, *, config_folder: Path
    ) -> None:
        corpus = folders.slice(job.domain, job.seed)
        self._job, self._setting, self._folders = job, setting, folders
        self._scorer = Scorer(config_folder, dtype=training_dtype(size.deepspeed))
        self._tokenizer = load_tokenizer(open_corpus(corpus).tokenizer_dir)
        vocab_size = open_corpus(corpus).vocab_size
        self._token_texts = [self._tokenizer.decode([token]) for token in range(vocab_size)]
        self._domain = heldout_pieces(corpus, sequence_tokens=setting.sequence_tokens)
        self._general = heldout_pieces(
            folders.general,
            sequence_tokens=setting.sequence_tokens,
            limit=setting.general_samples,
        )
        self._canaries = canaries_of(setting, job.seed)

    def of(self, weights: dict[str, Any]) -> Row:
        losses, scores = self._losses_and_scores(weights)
        completed = completed_share(
            self._domain, scores, token_texts=self._token_texts, domain=self._job.domain
        )
        known = memorised(self._scorer, self._canaries, self._tokenizer)
        return losses | {
            "completed": {kind: round(share, 5) for kind, share in completed.items()},
            "canaries": {name: round(value, 5) for name, value in known.items()},
            **self._answers(),
        }

    def _answers(self) -> Row:
        """To questions, by the harness; none where the setting asks none."""
        if not self._setting.questions:
            return {}
        with tempfile.TemporaryDirectory(dir=self._folders.run(self._job.folder_name)) as folder:
            self._scorer.write(Path(folder))
            answers = ask(
                Path(folder),
                setting=self._setting,
                domain=self._job.domain,
                folders=self._folders,
            )
        return {"answers": answers}

    def losses_of(self, weights: dict[str, Any]) -> Row:
        return self._losses_and_scores(weights)[0]

    def _losses_and_scores(self, weights: dict[str, Any]) -> tuple[Row, list[TokenScores]]:
        self._scorer.load(weights)
        scores = self._scorer.score(self._domain)
        losses = {
            "domain_loss": round(mean_nll(scores), 5),
            "general_loss": round(mean_nll(self._scorer.score(self._general)), 5),
        }
        return losses, scores
