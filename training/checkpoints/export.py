"""Exports a ZeRO-3 checkpoint to a Hugging Face folder, reloaded and compared with the original."""

from __future__ import annotations

import io
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from common.checksum import record_file
from data_prep.shards import open_corpus
from training.checkpoints.files import ENGINE_TAG, only_data
from training.checkpoints.manifest import (
    MANIFEST,
    find_corruption,
    newest_complete,
    read_manifest,
    write_manifest,
)
from training.config.load import KEPT_RECIPE, load_recipe
from training.config.recipe import Recipe
from training.config.sections import Model
from training.model.causal_lm import warn_of_remote_code

_WRAPPER_PREFIX = "lm."


def export_run(run_dir: Path, *, checkpoint: Path | None = None, out: Path | None = None) -> Path:
    """Write the weights of a checkpoint as safetensors, with configuration and tokenizer.

    One process on the CPU, with memory for all weights in fp32; no GPU.

    Args:
        run_dir: folder of a run.
        checkpoint: `run_dir/checkpoints/step-*`; by default the newest complete one.
        out: by default `run_dir/export`; an older export is replaced, anything else refused.

    Returns:
        The folder, which plain `transformers` loads.

    Raises:
        ValueError: when there is no complete checkpoint, when `out` is not an export, or when the
            reloaded weights differ from the trained ones; nothing is left under `out` then.
    """
    out = out or run_dir / "export"
    _refuse_foreign(out)
    recipe = load_run_recipe(run_dir)
    warn_of_remote_code(recipe.model)
    chosen = checkpoint or newest_complete(run_dir / "checkpoints", hashes=True)
    if chosen is None:
        raise ValueError(f"{run_dir}/checkpoints holds no complete checkpoint; train first")
    if checkpoint and (broken := find_corruption(checkpoint, hashes=True)) is not None:
        raise ValueError(f"checkpoint is incomplete or damaged: {broken}")
    staging = out.with_name(f".staging-{out.name}")
    shutil.rmtree(staging, ignore_errors=True)

    config = AutoConfig.from_pretrained(
        run_dir / "model", trust_remote_code=recipe.model.trust_remote_code
    )
    trained = trained_weights(chosen, dtype=config.dtype)
    model = AutoModelForCausalLM.from_config(
        config, dtype=config.dtype, trust_remote_code=recipe.model.trust_remote_code
    )
    model.load_state_dict(trained)
    model.save_pretrained(staging)
    _export_tokenizer(recipe.data.corpus, staging)
    del model
    _compare(staging, trained, recipe.model)
    _mark(staging, chosen)
    shutil.rmtree(out, ignore_errors=True)
    staging.rename(out)
    return out


def _refuse_foreign(out: Path) -> None:
    """Before any work: only an older export may be replaced."""
    is_free = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    is_export = (out / MANIFEST).is_file() and (out / "config.json").is_file()
    if out.is_symlink() or not (is_free or is_export):
        raise ValueError(f"{out} exists and is not an export; name a folder that does not exist")


def load_run_recipe(run_dir: Path) -> Recipe:
    """The resolved recipe saved in a run folder.

    Raises:
        ValueError: when the folder holds no run, or the recipe cannot be read.
    """
    path = run_dir / KEPT_RECIPE
    if not path.exists():
        raise ValueError(f"{run_dir} is not a run folder: {path.name} is missing")
    return load_recipe(path)


def trained_weights(checkpoint: Path, *, dtype: torch.dtype) -> dict[str, Tensor]:
    """All weights of a checkpoint, by the names of transformers, in the dtype of the training.

    The engine trains on its fp32 masters rounded to `dtype`; so does this.
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    # it reports its shards on stdout, where only the folder should appear
    with only_data(checkpoint), redirect_stdout(io.StringIO()):
        masters = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=ENGINE_TAG)
    return {
        name.removeprefix(_WRAPPER_PREFIX): weight.to(dtype) for name, weight in masters.items()
    }


def _export_tokenizer(corpus: str, folder: Path) -> None:
    source = open_corpus(corpus).tokenizer_dir
    if list(source.glob("*.model")):  # a sentencepiece model is used as it is
        shutil.copytree(source, folder, dirs_exist_ok=True)
    else:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        tokenizer.save_pretrained(folder)


def _mark(folder: Path, checkpoint: Path) -> None:
    """Record step and checksums of the export; `evaluate` compares them."""
    manifest = read_manifest(checkpoint)
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    files = {name.as_posix(): record_file(folder / name, durable=True) for name in names}
    content = {key: manifest[key] for key in ("step", "tokens", "heldout_loss")}
    write_manifest(folder, content, files=files)


def _compare(folder: Path, trained: dict[str, Tensor], model: Model) -> None:
    again = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", trust_remote_code=model.trust_remote_code
    ).state_dict()
    different = [
        name
        for name in trained.keys() | again.keys()
        if name not in again
        or name not in trained
        or again[name].dtype != trained[name].dtype
        or not torch.equal(again[name], trained[name])
    ]
    if different:
        shutil.rmtree(folder)
        raise ValueError(
            f"export: {len(different)} reloaded weights differ from the trained ones, among them "
            f"{sorted(different)[:3]}; nothing was exported"
        )
