"""The base models: pretrained by our own trainer or ready-made, and their entropies."""

from __future__ import annotations

import hashlib
from pathlib import Path

from benchmarks.study.corpora import Folders
from benchmarks.study.ready_model import write_ready_model
from benchmarks.study.recipes import base_recipe, scores_name
from benchmarks.study.settings import Base, ReadyModel, Setting
from training.checkpoints.export import export_run
from training.run.run import train
from training.run.score import ScoreOptions, score_corpus

_SAMPLES_AT_ONCE = 16


def prepare_base(setting: Setting, size: Base, folders: Folders) -> None:
    """Train, or resume, until the model is exported."""
    run_dir = folders.base(size.name)
    if isinstance(size, ReadyModel):
        write_ready_model(size, run_dir / "export")
    elif not (run_dir / "export").exists():
        train(base_recipe(setting, size, folders))
        export_run(run_dir)


def prepare_scores(setting: Setting, size: Base, folders: Folders) -> None:
    """Reference entropies of every slice that has none of this size yet."""
    for domain in setting.domains:
        for seed in setting.all_seeds:
            corpus = folders.slice(domain, seed)
            if not (corpus / f"scores-{scores_name(size)}").exists():
                _score(corpus, setting, size, model=folders.base(size.name) / "export")


def base_identity(size: Base, folders: Folders) -> str:
    """Of the exported weights: runs are comparable if they started from the same ones."""
    weights = folders.base(size.name) / "export" / "model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:12]


def _score(corpus: Path, setting: Setting, size: Base, *, model: Path) -> None:
    score_corpus(
        ScoreOptions(
            corpus=corpus,
            model=str(model),
            sequence_tokens=setting.sequence_tokens,
            name=scores_name(size),
            micro_batch_samples=_SAMPLES_AT_ONCE,
            deepspeed=size.deepspeed,
        )
    )
