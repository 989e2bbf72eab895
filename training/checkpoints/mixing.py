"""Weights of a checkpoint, the mean of several, or weights between those and their base.

The mean of late checkpoints: Izmailov et al. (SWA), arXiv 1803.05407. Between base and tuned
weights: Wortsman et al. (WiSE-FT), arXiv 2109.01903.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from training.checkpoints.choice import find_checkpoints
from training.checkpoints.ema_files import read_average
from training.checkpoints.files import ENGINE_TAG, only_data
from training.checkpoints.identity import BASE_WEIGHTS, compare_identity
from training.checkpoints.manifest import find_corruption, newest_complete, read_manifest
from training.config.adapter import Adapter
from training.config.sections import Model
from training.model.adapter import merge_adapter
from training.model.fingerprint import model_fingerprint
from training.model.multimodal import load_text_model
from training.model.source import refuse_unknown_source

Weights = dict[str, Tensor]
"""By the names of transformers."""
_WRAPPER_PREFIX = "lm."


@dataclass(frozen=True)
class Mix:
    """Which weights of a run: of one checkpoint, or made of several and of the base."""

    checkpoints: tuple[Path, ...]
    """In the order of their steps; more than one for their mean."""
    tuned_share: float = 1.0
    """The part of the way from the base to them, from 0 to 1."""
    averaged: bool = False
    """The moving averages that they hold, instead of their weights."""

    @property
    def is_one_checkpoint(self) -> bool:
        return len(self.checkpoints) == 1 and self.tuned_share == 1.0 and not self.averaged

    @property
    def is_between_models(self) -> bool:
        """Whether its weights are of no model that was trained or averaged in training."""
        return len(self.checkpoints) > 1 or self.tuned_share < 1.0

    @property
    def facts(self) -> dict[str, Any]:
        """What a manifest says of a mix; nothing of a single checkpoint."""
        if self.is_one_checkpoint:
            return {}
        weights = "ema" if self.averaged else "trained"
        return {"mix": {"weights": weights, "steps": self.steps, "tuned_share": self.tuned_share}}

    @property
    def steps(self) -> list[int]:
        return [int(read_manifest(folder)["step"]) for folder in self.checkpoints]

    def refuse_what_cannot_be_mixed(
        self, model: Model, *, adapter: Adapter | None, needs_base: bool = False
    ) -> None:
        """Before any weight is read.

        Args:
            adapter: of the run.

        Raises:
            ValueError: for a damaged checkpoint, one with another adapter, or a base that is
                missing.
        """
        refuse_no_share(self.tuned_share)
        if (needs_base or self.tuned_share < 1.0) and model.pretrained is None:
            raise ValueError("this run has no base to interpolate with: it began from scratch")
        if needs_base or self.tuned_share < 1.0 or adapter is not None:
            refuse_unknown_source(model)
        for folder in self.checkpoints:
            if (broken := find_corruption(folder, hashes=True)) is not None:
                raise ValueError(f"checkpoint is incomplete or damaged: {broken}")
            _refuse_other_adapter(folder, adapter)

    def load(
        self,
        model: Model,
        *,
        dtype: torch.dtype,
        adapter: Adapter | None = None,
        unrounded: Collection[str] = (),
    ) -> Weights:
        """All weights, rounded once to the dtype of the training.

        The engine trains on its fp32 masters rounded to `dtype`; so does this.

        Args:
            adapter: of the run; it is merged into the base, each checkpoint's on its own.
            unrounded: names of what the engine has not rounded either: buffers.

        Raises:
            ValueError: when the base has other weights than the model that was trained.
        """

        def load_one(checkpoint: Path) -> Weights:
            weights = self.load_trained(checkpoint)
            if adapter is None:
                return weights
            base = load_base(model, checkpoint)
            return merge_adapter(base, adapter, weights, dtype=trained_in(checkpoint))

        mixed = _mean_of(self.checkpoints, load_one)
        if self.tuned_share < 1.0:
            base = load_base(model, self.checkpoints[-1]).state_dict()
            mixed = interpolate(base, mixed, tuned_share=self.tuned_share)
        # one by one: the masters need not all live beside what is made of them
        return {
            name: mixed.pop(name).to(torch.float32 if name in unrounded else dtype)
            for name in list(mixed)
        }

    def load_trained(self, checkpoint: Path) -> Weights:
        """Of one checkpoint what was trained, fp32: all weights, or an adapter's."""
        return read_average(checkpoint) if self.averaged else load_masters(checkpoint)


def refuse_no_share(tuned_share: float, *, flag: str = "") -> None:
    """Raises a ValueError, unless it lies between 0, the base, and 1, the tuned weights."""
    if not 0.0 <= tuned_share <= 1.0:
        raise ValueError(
            f"{flag}{tuned_share:g} is no share between 0 (the base) and 1 (the tuned weights)"
        )


def find_mix(
    run_dir: Path,
    words: Sequence[str] = (),
    *,
    tuned_share: float = 1.0,
    averaged: bool = False,
) -> Mix:
    """Weights by the words of a command.

    Args:
        words: checkpoints as `find_checkpoints` takes them; none for the newest intact one.
        tuned_share, averaged: as in `Mix`.

    Raises:
        ValueError: for a word that names no complete checkpoint, or two that name the same.
    """
    root = run_dir / "checkpoints"
    if not words:
        newest = newest_complete(root, hashes=True)
        if newest is None:
            raise ValueError(f"{root} holds no complete checkpoint; train first")
        return Mix((newest,), tuned_share, averaged)
    found: dict[Path, str] = {}
    for word in words:
        for folder in map(Path.resolve, find_checkpoints(run_dir, word)):
            if folder in found:
                raise ValueError(f"{found[folder]} and {word} are the same checkpoint")
            _refuse_other_runs(folder, root)
            found[folder] = word
    ordered = sorted(found, key=lambda folder: int(read_manifest(folder)["step"]))
    return Mix(tuple(ordered), tuned_share, averaged)


def _refuse_other_runs(folder: Path, root: Path) -> None:
    """A checkpoint that lies elsewhere must be one of this run, as far as can be told."""
    own = newest_complete(root)
    if folder.parent == root.resolve() or own is None:
        return
    saved, expected = (_origin(checkpoint) for checkpoint in (folder, own))
    if saved != expected:
        raise ValueError(f"{folder} is not of the run of {root}: its model, seed or corpus differs")


def _origin(checkpoint: Path) -> tuple[Any, ...]:
    """Random weights of two seeds, or rows of two tokenizers, have no mean that means something."""
    identity = read_manifest(checkpoint)["identity"]
    return identity["recipe"]["model"], identity["recipe"]["seed"], identity["pack"]


def _refuse_other_adapter(folder: Path, adapter: Adapter | None) -> None:
    """One of another run, or from before an accepted change, computes something else with it."""
    saved: dict[str, Any] | None = read_manifest(folder)["identity"]["recipe"].get("adapter")
    own = None if adapter is None else asdict(adapter)
    for one in (saved, own):
        if one is not None:
            one.pop("dropout", None)  # acts in training alone
    differences = compare_identity({"adapter": saved}, {"adapter": own})
    if differences:
        raise ValueError(
            f"{folder} has another adapter than this run: {'; '.join(differences.values())}"
        )


def trained_weights(checkpoint: Path, *, dtype: torch.dtype) -> Weights:
    """Those of one checkpoint, in the dtype of the training."""
    masters = load_masters(checkpoint)
    return {name: masters.pop(name).to(dtype) for name in list(masters)}


def load_masters(checkpoint: Path) -> Weights:
    """The optimizer's fp32 weights, whole, on the CPU."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    # it reports its shards on stdout, where only the folder should appear
    with only_data(checkpoint), redirect_stdout(io.StringIO()):
        masters = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=ENGINE_TAG)
    return {name.removeprefix(_WRAPPER_PREFIX): masters[name].detach() for name in masters}


def _mean_of(checkpoints: Sequence[Path], load: Callable[[Path], Weights]) -> Weights:
    """One more set of weights at a time beside the mean."""
    mean = load(checkpoints[0])
    for number, folder in enumerate(checkpoints[1:], start=2):
        weights = load(folder)
        mean = {name: mean[name].lerp(weights.pop(name), 1 / number) for name in list(mean)}
    return mean


def trained_in(checkpoint: Path) -> torch.dtype:
    """The dtype of the weights in its training."""
    name: str = read_manifest(checkpoint)["identity"]["dtype"]
    dtype: torch.dtype = getattr(torch, name.removeprefix("torch."))
    return dtype


def load_base(model: Model, checkpoint: Path) -> PreTrainedModel:
    """The model that training began with, in fp32; for a run that has a base.

    Args:
        checkpoint: of the run, which knows them by their fingerprint.

    Raises:
        ValueError: when they are no longer the same.
    """
    assert model.pretrained is not None
    base = load_text_model(
        model.pretrained, dtype=torch.float32, trust_remote_code=model.trust_remote_code
    )
    expected = read_manifest(checkpoint)["identity"].get(BASE_WEIGHTS)
    if expected is None:  # of an older version
        print(
            f"WARNING: {checkpoint} does not say which weights its run began with; those of "
            f"{model.pretrained} are taken as they are now",
            file=sys.stderr,
            flush=True,
        )
    elif model_fingerprint(base, dtype=trained_in(checkpoint)) != expected:
        raise ValueError(
            f"model.pretrained {model.pretrained} no longer holds the weights that this run began "
            "with; put those back"
        )
    return base


def interpolate(base: Mapping[str, Tensor], tuned: Weights, *, tuned_share: float) -> Weights:
    """`base + tuned_share (tuned - base)`, fp32; exactly the one at 0 and the other at 1.

    Raises:
        ValueError: when they have other names or shapes.
    """
    for name, weight in tuned.items():
        if name not in base or base[name].shape != weight.shape:
            there = tuple(base[name].shape) if name in base else "missing"
            raise ValueError(
                f"the base is not the one that was trained: {name} is {there} there and "
                f"{tuple(weight.shape)} in the checkpoint"
            )
    return {name: base[name].lerp(tuned[name], tuned_share) for name in tuned}
