"""Exports a ZeRO-3 checkpoint to a Hugging Face folder, reloaded and compared with the original."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from common.checksum import record_file
from common.hints import no_folder
from data_prep.shards import open_corpus
from training.checkpoints.adapter_folder import (
    adapter_weights,
    is_adapter_folder,
    load_beside_base,
    rounded,
    write_adapter,
)
from training.checkpoints.corpus_samples import CorpusSamples, load_samples
from training.checkpoints.files import staged_folder
from training.checkpoints.identity import BASE_WEIGHTS
from training.checkpoints.manifest import (
    MANIFEST,
    read_manifest,
    trained_loss,
    write_manifest,
)
from training.checkpoints.mixing import Mix, find_mix, trained_in
from training.checkpoints.model_card import write_model_card
from training.checkpoints.model_folder import (
    FILE_SIZE,
    IS_PART,
    MODEL_FOLDER,
    SAMPLES,
    find_base,
    make_model_folder,
    read_folder,
    terms_of,
)
from training.checkpoints.other_parts import restore_parts
from training.checkpoints.public_names import drop_notes
from training.config.load import KEPT_RECIPE, load_recipe
from training.config.recipe import Recipe
from training.config.sections import Model
from training.model.causal_lm import warn_of_remote_code
from training.model.plain_losses import find_other_losses
from training.model.skeleton import build_skeleton
from training.model.tokenizer_check import find_other_tokens, load_tokenizer

_CONFIG = "config.json"


@dataclass(frozen=True)
class Form:
    """In which form weights are written."""

    merge: bool = False
    """Of a run with an adapter, one model, not the adapter alone."""
    dtype: str | None = None
    """By its name in torch; None for that of the training."""


AS_TRAINED = Form()


def export_run(
    run_dir: Path,
    *,
    checkpoints: Sequence[str] = (),
    tuned_share: float = 1.0,
    averaged: bool = False,
    form: Form = AS_TRAINED,
    out: Path | None = None,
) -> Path:
    """Write the weights of a checkpoint as safetensors, with configuration and tokenizer.

    One process on the CPU, with memory for all weights in fp32 (twice for a mix), or for two
    copies in their own dtype; no GPU.

    Args:
        run_dir: folder of a run.
        checkpoints: best, last, step-N or a folder; several for their mean; by default the newest
            intact one.
        tuned_share: how far from the base (0) to them (1).
        averaged: take the moving averages that they hold (`ema`), not their weights.
        form: of the weights.
        out: by default `run_dir/export`; an older export is replaced, anything else refused.

    Returns:
        The folder, which plain `transformers` loads; an adapter's, which `peft` loads.

    Raises:
        ValueError: when there is no complete checkpoint, when `out` is not an export, or when the
            reloaded weights, losses or tokens differ from those of the training; nothing is left
            under `out` then.
    """
    out = out or run_dir / "export"
    _refuse_foreign(out)
    recipe = load_run_recipe(run_dir)
    warn_of_remote_code(recipe.model)
    mix = find_mix(run_dir, checkpoints, tuned_share=tuned_share, averaged=averaged)
    mix.refuse_what_cannot_be_mixed(recipe.model, adapter=recipe.adapter)
    _refuse_unfit_form(recipe, mix, form)
    if recipe.ema is not None and recipe.ema.decides_best and not averaged:
        print(
            "WARNING: in this run the average decides what is best (ema.decides_best), and these "
            "are the weights as trained; export --weights ema writes the average",
            file=sys.stderr,
            flush=True,
        )
    files = _model_files(run_dir, recipe)
    if form.dtype is not None:
        files[_CONFIG] = _with_dtype(files[_CONFIG], form.dtype)
    samples = load_samples(files.pop(SAMPLES))
    is_part = files.pop(IS_PART, None) is not None
    base = find_base(recipe.model) if is_part else None
    if base is not None and recipe.adapter is not None and not form.merge:
        raise ValueError(
            "the run trained the text model of a larger one, beside which peft would not find the "
            "layers of its adapter: add --merge"
        )
    with staged_folder(out) as staging:
        if recipe.adapter is None or form.merge:
            _write_files(files, staging)
            lm = _write_weights(staging, mix, recipe)
            _write_files(files, staging)  # transformers writes some of them anew
            mistake = _find_mistake(staging, lm, recipe.model, samples)
        else:  # its tokenizer is the base's
            lm = _write_adapter(staging, mix, recipe, kept=run_dir / MODEL_FOLDER)
            mistake = find_other_losses(lm, samples.documents)
            _write_files(terms_of(files), staging)
        if mistake is not None:
            raise ValueError(f"export: {mistake}; nothing was exported")
        if base is not None:
            restore_parts(staging, base)
        drop_notes(staging)
        newest = read_manifest(mix.checkpoints[-1])
        write_model_card(staging, recipe, run_dir=run_dir, mix=mix.facts, manifest=newest)
        _mark(staging, mix)
    return out


def _with_dtype(config: bytes, dtype: str) -> bytes:
    """A configuration by which the weights are written, and loaded again."""
    content = json.loads(config) | {"dtype": dtype, "torch_dtype": dtype}
    return (json.dumps(content, indent=2) + "\n").encode()


def _refuse_unfit_form(recipe: Recipe, mix: Mix, form: Form) -> None:
    if recipe.adapter is not None and not form.merge and form.dtype is not None:
        raise ValueError("--dtype: an adapter alone has that of its training: add --merge")
    if form.merge and recipe.adapter is None:
        raise ValueError("--merge: this run has no adapter; its export is a whole model anyway")
    if recipe.adapter is not None and not form.merge and mix.is_between_models:
        raise ValueError(
            "--average and --interpolate-base make weights that are no adapter's: add --merge"
        )


def _refuse_foreign(out: Path) -> None:
    """Before any work: only an older export may be replaced."""
    is_free = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    is_model = (out / _CONFIG).is_file() or is_adapter_folder(out)
    is_export = (out / MANIFEST).is_file() and is_model
    if out.is_symlink() or not (is_free or is_export):
        raise ValueError(f"{out} exists and is not an export; name a folder that does not exist")


def load_run_recipe(run_dir: Path) -> Recipe:
    """The resolved recipe saved in a run folder.

    Raises:
        ValueError: when the folder holds no run, or the recipe cannot be read.
    """
    if not run_dir.is_dir():
        raise ValueError(no_folder(run_dir))
    path = run_dir / KEPT_RECIPE
    if not path.exists():
        raise ValueError(f"{run_dir} is not a run folder: {path.name} is missing")
    return load_recipe(path)


def _model_files(run_dir: Path, recipe: Recipe) -> dict[str, bytes]:
    """As the run keeps them; made from the corpus for a run whose start did not keep them."""
    folder = run_dir / MODEL_FOLDER
    if (folder / SAMPLES).is_file():
        return read_folder(folder)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=recipe.model.trust_remote_code)
    try:
        base = find_base(recipe.model)
    except ValueError as error:
        base = None
        print(
            f"WARNING: {error}; the export lacks its generation settings and chat templates",
            file=sys.stderr,
            flush=True,
        )
    return make_model_folder(recipe.model, config, open_corpus(recipe.data.corpus), base=base)


def _write_files(files: dict[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _write_adapter(folder: Path, mix: Mix, recipe: Recipe, *, kept: Path) -> PreTrainedModel:
    """Save an adapter, and load it again beside its base.

    Raises:
        ValueError: when its weights are others then, or the base has changed.
    """
    assert recipe.adapter is not None
    (checkpoint,) = mix.checkpoints
    trained = rounded(mix.load_trained(checkpoint), trained_in(checkpoint))
    write_adapter(folder, trained, model=recipe.model, adapter=recipe.adapter, kept=kept)
    again = load_beside_base(folder, model=recipe.model, checkpoint=checkpoint)
    _compare(adapter_weights(again), trained)
    return again


def _write_weights(folder: Path, mix: Mix, recipe: Recipe) -> PreTrainedModel:
    """Save the weights next to the configuration, and load them again.

    Raises:
        ValueError: when they cannot be written, or are others when they are loaded.
    """
    model = recipe.model
    lm = build_skeleton(folder, model)
    buffers = [name for name, _ in lm.named_buffers()]
    trained = mix.load(model, dtype=lm.dtype, adapter=recipe.adapter, unrounded=buffers)
    # transformers keeps some in fp32, such as a router's, and loads them so
    trained |= {name: trained[name].to(own.dtype) for name, own in lm.state_dict().items()}
    lm.load_state_dict(trained, assign=True)
    lm.tie_weights()
    lm.generation_config = GenerationConfig()  # ours is written later, in the base's words
    try:
        lm.save_pretrained(folder, max_shard_size=FILE_SIZE)
    except SafetensorError as error:  # not an OSError, even when a disk is full
        raise ValueError(
            f"{folder}: {error}; nothing was exported. Free some space, or choose another --out"
        ) from None
    del lm
    again = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", trust_remote_code=model.trust_remote_code
    )
    _compare(again.state_dict(), trained)
    return again


def _find_mistake(
    folder: Path, lm: PreTrainedModel, model: Model, samples: CorpusSamples
) -> str | None:
    """In the tokens, or in the losses, which use up `lm`."""
    tokenizer = load_tokenizer(folder, model)
    if (mistake := find_other_tokens(tokenizer, samples.tokens)) is not None:
        return f"the tokenizer is not the corpus's: {mistake}"
    return find_other_losses(lm, samples.documents)


def _mark(folder: Path, mix: Mix) -> None:
    """Record step and checksums of the export; `evaluate` compares them."""
    newest = mix.checkpoints[-1]
    manifest = read_manifest(newest)
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    files = {name.as_posix(): record_file(folder / name, durable=True) for name in names}
    content = {key: manifest[key] for key in ("step", "tokens")}
    content["heldout_loss"] = trained_loss(manifest)
    content["checkpoint_sha256"] = record_file(newest / MANIFEST).sha256
    if is_adapter_folder(folder):
        content[BASE_WEIGHTS] = manifest["identity"][BASE_WEIGHTS]
    if not mix.is_one_checkpoint:  # no held-out loss is known of it
        content |= {"heldout_loss": None, "checkpoint_sha256": None, **mix.facts}
    write_manifest(folder, content, files=files)


def _compare(again: dict[str, Tensor], trained: dict[str, Tensor]) -> None:
    different = [
        name
        for name in trained.keys() | again.keys()
        if name not in again
        or name not in trained
        or again[name].dtype != trained[name].dtype
        or not torch.equal(again[name], trained[name])
    ]
    if different:
        raise ValueError(
            f"export: {len(different)} reloaded weights differ from the trained ones, among them "
            f"{sorted(different)[:3]}; nothing was exported"
        )
