"""Proof of what an epoch trained on: a digest of its samples, the same in any order and layout."""

from __future__ import annotations

import torch
from torch import Tensor

from training.data.stream import MicroBatch, SampleStream
from training.entrodrop.counter_rng import PROOF_STREAM, token_keys

_MASK = (1 << 64) - 1


def visits_digest(batches: list[MicroBatch], stream: SampleStream, step: int) -> Tensor:
    """Sum of hashes of this rank's rows, modulo 2^64, int64 with one number for each epoch.

    A row's hash covers its sample and how often that came before. Summed over ranks it is the same
    on every layout; of the ranks that share a row only one counts it.
    """
    epochs = stream.epochs_of(step)
    digest_E = torch.zeros(len(epochs), dtype=torch.int64)
    if stream.layout.sp_rank == 0:
        for batch in batches:
            hashed_B = token_keys(torch.tensor(batch.visits), seed=0, stream=PROOF_STREAM)
            for sample, epoch, hashed in zip(batch.sample_ids, batch.epochs, hashed_B, strict=True):
                if sample >= 0:
                    digest_E[epoch - epochs.start] += hashed  # wraps around
    return digest_E


def finish_epochs(
    carried: int, digests: list[int], stream: SampleStream, step: int
) -> tuple[dict[int, str], int]:
    """Which epochs end with a step, with their digests, and what is carried to the next step.

    Args:
        carried: of the epoch in which the step begins, from earlier steps.
        digests: of the step, summed over ranks, one for each epoch of it.
    """
    num_done = min((step + 1) * stream.samples_per_step, stream.total_samples)
    finished = {}
    for epoch, digest in zip(stream.epochs_of(step), digests, strict=True):
        whole = (carried + digest) & _MASK
        if num_done >= (epoch + 1) * stream.samples_per_epoch:
            finished[epoch] = f"{whole:016x}"
            whole = 0
        carried = whole
    return finished, carried
