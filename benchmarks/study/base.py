"""The base models: pretrained by our own trainer, ready-made or random, and their entropies."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from benchmarks.study.corpora import Folders
from benchmarks.study.ready_model import write_ready_model
from benchmarks.study.recipes import base_recipe, scores_name
from benchmarks.study.settings import Base, ReadyModel, Setting, Size
from data_prep.shards import open_corpus
from training.checkpoints.export import export_run
from training.run.run import train
from training.run.score import ScoreOptions, score_corpus

_SAMPLES_AT_ONCE = 16


def prepare_base(setting: Setting, size: Base, folders: Folders) -> None:
    """Train, or resume, until the model is exported."""
    run_dir = folders.base(size.name)
    if isinstance(size, ReadyModel):
        write_ready_model(size, run_dir / "export")
    elif (run_dir / "export").exists():
        return
    elif size.base_epochs:
        train(base_recipe(setting, size, folders))
        export_run(run_dir)
    else:
        _write_untrained(setting, size, folders, run_dir / "export")


def prepare_scores(setting: Setting, size: Base, folders: Folders) -> None:
    """Reference entropies of every slice, and of replayed text, that has none of this size yet."""
    corpora = [folders.slice(domain, s) for domain in setting.domains for s in setting.all_seeds]
    if setting.question in ("levers", "core"):
        corpora.append(folders.general)
    for corpus in corpora:
        if not (corpus / f"scores-{scores_name(size)}").exists():
            _score(corpus, setting, size, model=folders.base(size.name) / "export")


def _write_untrained(setting: Setting, size: Size, folders: Folders, folder: Path) -> None:
    """Random weights, the same for all runs; the folder appears only when complete."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    corpus = open_corpus(folders.general)
    config = AutoConfig.for_model(
        **size.config(sequence_tokens=setting.sequence_tokens), vocab_size=corpus.vocab_size
    )
    torch.manual_seed(0)
    staged = folder.with_name(f".{folder.name}")
    shutil.copytree(corpus.tokenizer_dir, staged, dirs_exist_ok=True)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(staged)
    staged.rename(folder)


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
