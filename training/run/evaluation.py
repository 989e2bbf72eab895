"""Held-out loss of one set, overall and by entropy band, the same on every layout and batch size.

B rows, S tokens of this rank's sequence shard, T tokens of a sample.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from common.checksum import record_file
from common.durable import atomic_write
from training.data.stream import MicroBatch, SampleStream
from training.entrodrop.quantile import global_quantile
from training.model.engine import Engine
from training.model.inputs import ModelInputs
from training.ranks.dist import mean_of, sum_over_ranks

_NO_BAND = 255


@dataclass(frozen=True)
class Bands:
    """Which entropy band each held-out target belongs to, frozen at the start of the run."""

    edges_nats: tuple[float, ...]
    """Upper edges of all bands but the last."""
    path: Path
    """uint8 memmap `[num_samples, T]`, the band of the target at each position."""
    shape: tuple[int, int]
    pack: str
    """Fingerprint of the pack whose targets they are."""
    split: str | None = None
    """That their samples are of; None of older runs, which did not record it."""
    first_sample: int | None = None
    """Of the split; None of older runs."""

    @property
    def num_bands(self) -> int:
        return len(self.edges_nats) + 1

    def are_of(self, stream: SampleStream) -> bool:
        """Whether they are of these samples, as far as the run recorded it."""
        return (
            self.pack == stream.pack.fingerprint
            and self.shape == (stream.total_samples, stream.pack.seq_len)
            and self.split in (None, stream.split)
            and self.first_sample in (None, stream.first_sample)
        )

    def of(self, batch: MicroBatch, stream: SampleStream) -> Tensor:
        """int64 `[B, S]`; arbitrary where there is no target."""
        bands = np.memmap(self.path, dtype=np.uint8, mode="r", shape=self.shape)
        shard = self.shape[1] // stream.layout.sp_size
        start = stream.layout.sp_rank * shard
        rows = [
            bands[max(sample - stream.first_sample, 0), start : start + shard]
            for sample in batch.sample_ids
        ]
        band_BS = torch.from_numpy(np.stack(rows).astype(np.int64))
        return band_BS.clamp_(max=self.num_bands - 1).to(batch.ids_BS.device)


def evaluate(engine: Engine, stream: SampleStream, bands: Bands | None) -> dict[str, Any]:
    """Token-weighted loss and entropy over the split, and the loss of each band.

    Every rank runs the same number of forward passes: the stream pads the last batch with rows
    that have no target, since a rank that stops early would leave ZeRO-3 waiting.
    """
    began = time.monotonic()
    num_bands = bands.num_bands if bands else 0
    sums = torch.zeros(3 + 2 * num_bands, dtype=torch.float64, device=engine.layout.device)
    for step in range(stream.num_steps):
        engine.watchdog.enter("held-out data", alone=True)
        for batch in stream.step(step):
            nll_BS, entropy_BS = engine.probe(ModelInputs.of(batch))
            is_target_BS = batch.is_target_BS
            nll, entropy = nll_BS[is_target_BS].double(), entropy_BS[is_target_BS].double()
            sums[:3] += torch.stack([nll.sum(), entropy.sum(), is_target_BS.sum()])
            if bands:
                band = bands.of(batch, stream)[is_target_BS]
                sums[3 : 3 + num_bands].index_add_(0, band, nll)
                sums[3 + num_bands :] += torch.bincount(band, minlength=num_bands)
    nll_sum, entropy_sum, num_targets, *rest = sum_over_ranks(sums)
    result: dict[str, Any] = {
        "loss": mean_of(nll_sum, num_targets),
        "entropy_nats": mean_of(entropy_sum, num_targets),
        "num_targets": int(num_targets),
    }
    if bands:
        edges = (0.0, *bands.edges_nats, math.log(engine.vocab_size))
        result["bands"] = [
            {
                "band": band + 1,
                "from_nats": edges[band],
                "to_nats": edges[band + 1],
                "loss": mean_of(rest[band], rest[num_bands + band]),
                "num_targets": int(rest[num_bands + band]),
            }
            for band in range(num_bands)
        ]
    return result | {"seconds": time.monotonic() - began}


def freeze_bands(engine: Engine, stream: SampleStream, *, num_bands: int, folder: Path) -> Bands:
    """Sort the held-out targets into bands of equal size by the model's current entropies.

    Done once, before the first step; a resumed run reads the result. Ranks write disjoint
    parts of one file, which becomes visible under its name when all have finished.
    """
    shape = (stream.total_samples, stream.pack.seq_len)
    path, partial = folder / "heldout_bands.u8", folder / "heldout_bands.u8.partial"
    if engine.layout.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        np.memmap(partial, dtype=np.uint8, mode="w+", shape=shape)[:] = _NO_BAND
    dist.barrier()

    batches, entropies = [], []
    for step in range(stream.num_steps):
        engine.watchdog.enter("held-out data", alone=True)
        for batch in stream.step(step):
            batches.append(batch)
            entropies.append(engine.probe(ModelInputs.of(batch))[1])
    entropy_RS = torch.cat(entropies)
    is_target_RS = torch.cat([batch.is_target_BS for batch in batches])
    edges = tuple(
        global_quantile(entropy_RS, band / num_bands, valid=is_target_RS).threshold
        for band in range(1, num_bands)
    )
    band_RS = torch.bucketize(entropy_RS, torch.tensor(edges, device=entropy_RS.device))
    bands_RS = band_RS.masked_fill(~is_target_RS, _NO_BAND).to(torch.uint8).cpu().numpy()
    target = np.memmap(partial, dtype=np.uint8, mode="r+", shape=shape)
    start = engine.layout.sp_rank * entropy_RS.shape[1]
    sample_ids = [sample for batch in batches for sample in batch.sample_ids]
    for row, sample in enumerate(sample_ids):
        if sample >= 0:
            place = sample - stream.first_sample
            target[place, start : start + entropy_RS.shape[1]] = bands_RS[row]
    target.flush()
    dist.barrier()
    if engine.layout.is_main:
        partial.replace(path)
        described = {
            "edges_nats": edges,
            "shape": shape,
            "pack": stream.pack.fingerprint,
            "split": stream.split,
            "first_sample": stream.first_sample,
            "sha256": record_file(path).sha256,
        }
        atomic_write(folder / "heldout_bands.json", json.dumps(described))
    dist.barrier()
    return Bands(edges, path, shape, stream.pack.fingerprint, stream.split, stream.first_sample)


def bands_of_stream(folder: Path, stream: SampleStream) -> Bands | None:
    """The kept bands, or None with one line on stderr when they are of other samples.

    Raises:
        ValueError: as `load_bands`.
    """
    bands = load_bands(folder)
    if bands.are_of(stream):
        return bands
    if stream.layout.is_main:
        told = "made of other samples; no held-out losses by band"
        print(f"{folder}: {told}", file=sys.stderr, flush=True)
    return None


def load_bands(folder: Path) -> Bands:
    """The bands that the run's first start froze.

    Raises:
        ValueError: when they are missing or damaged: the losses by band would no longer be
            comparable.
    """
    described, path = folder / "heldout_bands.json", folder / "heldout_bands.u8"
    remedy = "the run cannot continue without it"
    try:
        content = json.loads(described.read_text(encoding="utf-8"))
        edges, shape = tuple(content["edges_nats"]), tuple(content["shape"])
        pack = content["pack"]
        found = record_file(path).sha256
    except OSError as error:
        raise ValueError(f"{error.filename}: {error.strerror}; {remedy}") from None
    except KeyError as error:
        raise ValueError(f"{described}: damaged: {error} is missing; {remedy}") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{described}: damaged: {error}; {remedy}") from None
    expected = content.get("sha256", found)  # runs of before it was recorded
    if found != expected:
        raise ValueError(f"{path}: damaged: expected sha256 {expected}, found {found}; {remedy}")
    split, first_sample = content.get("split"), content.get("first_sample")
    return Bands(edges, path, shape, pack, split, first_sample)
