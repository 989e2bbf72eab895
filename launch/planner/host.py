"""Memory of a node's host and bytes on disk: offloaded state, checkpoints in memory and files."""

from __future__ import annotations

from dataclasses import dataclass

from launch.planner.rank import Run
from training.config.recipe import Recipe

_PROCESS_BYTES = 3 * 2**30
"""Python, torch, CUDA's host side and data of one process: an assumption, not measured on a GPU."""
_CHECKPOINT_BYTES = 12
"""A trained weight: fp32 master, Adam's two moments; bf16 weights are made from the first."""


@dataclass(frozen=True)
class Host:
    """Bytes, of one node unless it says otherwise."""

    processes: int
    optimizer: int
    """Offloaded master weights, moments and gradients."""
    parameters: int
    activations: int
    """Inputs of layers, for the backward pass."""
    pinned: int
    """Part of the three before that cannot be swapped out."""
    checkpoint_copy: int
    """Of checkpoints that are written in the background."""
    model_files: int
    """On the first node, while it loads a pretrained model."""
    checkpoint_on_disk: int
    """Of the whole run, one checkpoint."""
    checkpoints_kept: int
    """The most on disk at a time, including the one being written."""
    export_on_disk: int
    entropies_on_disk: int
    """Of the run's cache, and again in each checkpoint; 0 without one or if its size is unknown."""

    @property
    def peak_bytes(self) -> int:
        held = self.processes + self.optimizer + self.parameters + self.activations
        return held + max(self.checkpoint_copy, self.model_files)


def forecast_host(
    recipe: Recipe, run: Run, *, ranks_per_node: int, pack_tokens: int | None
) -> Host:
    """The most that the host of a node holds.

    Args:
        pack_tokens: of the train split; None if unknown.
    """
    zero, own, trained = run.zero, run.partition, run.trained_partition
    master = moments = gradients = parameters = pinned = 0
    if zero.offloads_optimizer:
        master, moments = trained * 4, trained * 8
        # added up, and as Adam reads them
        held = (trained * zero.gradient_bytes, trained * 4)
        master += trained * 4 if run.averages else 0
        master += own * zero.number_bytes if run.keeps_base else 0
        gradients = sum(map(_pinned_block, held)) if zero.pins_optimizer else sum(held)
        pinned += gradients if zero.pins_optimizer else 0
    if zero.offloads_parameters:
        parameters = _pinned_block(own * zero.number_bytes)
        parameters += run.second_partition  # a block of its own for each weight
        pinned += parameters
    activations = 0
    if run.activations.offloads:
        activations = run.arch.layers * _pinned_block(run.activations.layer_input)
        pinned += activations
    settings = recipe.checkpoint
    saves_beside = settings.in_background and settings.every_steps is not None
    checkpoint_bytes = _CHECKPOINT_BYTES + (4 if run.averages else 0)
    entropies = 2 * (pack_tokens or 0) if recipe.keeps_entropies else 0  # float16
    return Host(
        processes=ranks_per_node * _PROCESS_BYTES,
        optimizer=ranks_per_node * (master + moments + gradients),
        parameters=ranks_per_node * parameters,
        activations=ranks_per_node * activations,
        pinned=ranks_per_node * pinned,
        checkpoint_copy=ranks_per_node * trained * checkpoint_bytes if saves_beside else 0,
        model_files=run.arch.parameters * 2 if recipe.model.pretrained else 0,
        checkpoint_on_disk=run.arch.trained * checkpoint_bytes + entropies,
        checkpoints_kept=settings.keep_last + settings.keep_best + 1 if settings.every_steps else 1,
        export_on_disk=run.arch.trained * zero.number_bytes,
        entropies_on_disk=entropies,
    )


def _pinned_block(num_bytes: int) -> int:
    """torch pins memory in blocks of powers of two (`CachingHostAllocator`)."""
    return 1 << max(num_bytes - 1, 0).bit_length() if num_bytes else 0
