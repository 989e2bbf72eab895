"""Score a corpus with a frozen model: an entropy for every token, on any number of processes.

B rows, S tokens of this rank's sequence shard, T tokens of a sample, R rows of all ranks; K
likeliest tokens, J = K + 1 with all others as one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from common.progress import progress_bar
from data_prep.shards import (
    FileRecord,
    PackIndex,
    ScoresWriter,
    TopK,
    describe_files,
    make_files,
    open_corpus,
    open_scores_writer,
)
from training.config.load import parse_recipe
from training.data.stream import SampleStream
from training.model.engine import Engine, build_engine
from training.model.inputs import ModelInputs
from training.ranks.dist import (
    Layout,
    broadcast_from_rank0,
    init_layout,
    raise_together,
    sum_over_ranks,
    together,
    together_slowly,
)
from training.run.fit import fitting_config, refuse_misfit

COMMIT_SECONDS = 30.0
SPLITS: tuple[Literal["train", "val"], ...] = ("train", "val")


@dataclass(frozen=True)
class ScoreOptions:
    """What to score, with what."""

    corpus: Path
    model: str
    sequence_tokens: int
    """Of the pack whose samples are the contexts."""
    name: str = "reference"
    measure: Literal["shannon", "nll"] = "shannon"
    top_k: int | None = None
    """How many of the likeliest tokens to keep of each position, for a teacher."""
    micro_batch_samples: int = 1
    sequence_parallel_size: int = 1
    deepspeed: str = "ds_configs/zero3.json"
    trust_remote_code: bool = False
    overwrite: bool = False


def score_corpus(options: ScoreOptions) -> Path:
    """Write the scores into the corpus; every rank calls it. A killed start is resumed.

    The score of a token depends only on its own document's part of the sample, so not on the
    layout, except for rounding.

    Returns:
        The folder of the scores.

    Raises:
        ValueError: for a corpus, pack or model that does not fit, before weights exist.
    """
    recipe = parse_recipe(
        {
            "run_dir": "unused",
            "model": {
                "pretrained": options.model,
                "trust_remote_code": options.trust_remote_code,
            },
            "data": {
                "corpus": str(options.corpus),
                "sequence_tokens": options.sequence_tokens,
            },
            "train": {
                "global_batch_tokens": options.sequence_tokens * options.micro_batch_samples,
                "micro_batch_samples": options.micro_batch_samples,
                "sequence_parallel_size": options.sequence_parallel_size,
            },
            "deepspeed": options.deepspeed,
        },
        origin="score",
    )
    layout = init_layout(sp_size=options.sequence_parallel_size)
    corpus = open_corpus(options.corpus)
    pack = corpus.open_pack(options.sequence_tokens)
    config = fitting_config(recipe, corpus, sp_size=layout.sp_size)
    refuse_misfit(recipe, corpus, config, layout)
    writing = open_scores_writer(
        corpus,
        name=options.name,
        measure=options.measure,
        model=options.model,
        seq_len=options.sequence_tokens,
        overwrite=options.overwrite,
        top_k=options.top_k,
    )
    with ExitStack() as open_files:
        writer, error = None, None
        if layout.is_main:
            try:
                writer = open_files.enter_context(writing)
            except (ValueError, OSError) as mistake:
                error = str(mistake)
        raise_together(error)  # else the other ranks would wait for the first
        staging, is_new, num_done = broadcast_from_rank0(
            (writer.staging, writer.is_new, writer.num_done) if writer else (Path(), False, 0)
        )
        share: dict[str, Any] = {
            "top_k": options.top_k,
            "rank": layout.rank,
            "world_size": layout.world_size,
        }
        if is_new:
            together_slowly(lambda: make_files(corpus, staging, **share), layout)
        together(lambda: writer.begin() if writer else None)
        engine = build_engine(recipe, config, layout=layout, num_micro_steps=1)
        _score_splits(engine, pack, options, writer=writer, num_done=num_done)
        own = together_slowly(lambda: describe_files(corpus, staging, **share), layout)
        shares: list[list[FileRecord]] = [[] for _ in range(layout.world_size)]
        dist.all_gather_object(shares, own)
        if writer:
            writer.files = in_shard_order(shares)
    dist.barrier()
    return options.corpus / f"scores-{options.name}"


def in_shard_order(shares: Sequence[Sequence[FileRecord]]) -> list[FileRecord]:
    """What the ranks say of every n-th file each, as one list."""
    rounds = zip_longest(*shares)
    return [record for each in rounds for record in each if record is not None]


def _score_splits(
    engine: Engine,
    pack: PackIndex,
    options: ScoreOptions,
    *,
    writer: ScoresWriter | None,
    num_done: int,
) -> None:
    layout = engine.layout
    total = sum(pack.num_samples(split) for split in SPLITS)
    at_once = options.micro_batch_samples * layout.dp_size
    committed_at, num_before = time.monotonic(), 0
    shows = writer is not None
    with progress_bar(total, what="score", unit=" samples", done=num_done, shows=shows) as bar:
        for split in SPLITS:
            num_samples = pack.num_samples(split)
            stream = SampleStream(
                pack=pack,
                split=split,
                layout=layout,
                total_samples=num_samples,
                samples_per_step=at_once,
                micro_batch_samples=options.micro_batch_samples,
            )
            # A start with other ranks may begin within a step of its own: that one is redone.
            first_step = min(max(num_done - num_before, 0), num_samples) // at_once
            for step in range(first_step, stream.num_steps):
                rows = _score_step(
                    engine, stream, options, step=step, num_ids=pack.corpus.vocab_size
                )
                done = num_before + min((step + 1) * at_once, num_samples)
                error = None
                if writer is not None and rows is not None:
                    is_due = time.monotonic() - committed_at >= COMMIT_SECONDS
                    is_last = step == stream.num_steps - 1
                    error = _keep(
                        writer,
                        pack,
                        split,
                        rows,
                        first=step * at_once,
                        num_done=done if is_due or is_last else None,
                    )
                    committed_at = time.monotonic() if is_due else committed_at
                    bar.update(max(done - bar.n, 0))
                failed = torch.tensor([float(error is not None)], device=layout.device)
                if sum_over_ranks(failed)[0]:
                    raise_together(error)
            num_before += num_samples


class _Rows(NamedTuple):
    """Of all rows of a step, on the first rank."""

    values_RT: Tensor
    """fp32; NaN where nothing is predicted, -1 where the model gives no number."""
    ids_RTK: Tensor | None = None
    log_probs_RTJ: Tensor | None = None

    def top_k(self, row: int) -> TopK | None:
        """Of a row, if they are kept."""
        if self.ids_RTK is None or self.log_probs_RTJ is None:
            return None
        return TopK(self.ids_RTK[row].cpu().numpy(), self.log_probs_RTJ[row].cpu().numpy())


def _score_step(
    engine: Engine, stream: SampleStream, options: ScoreOptions, *, step: int, num_ids: int
) -> _Rows | None:
    """Scores at every position; None but on the first rank."""
    (batch,) = stream.step(step)
    inputs, kept = ModelInputs.of(batch), []
    if options.top_k is None:
        nll_BS, entropy_BS = engine.probe(inputs)
    else:
        (nll_BS, entropy_BS), top_k = engine.probe_top_k(inputs, k=options.top_k, num_ids=num_ids)
        log_probs_BSJ = top_k.log_probs_NJ.clamp(max=0.0).half()  # fp32 may round to above 0
        log_probs_BSJ = log_probs_BSJ.masked_fill(~batch.is_target_BS[..., None], torch.nan)
        kept = [top_k.ids_NK, log_probs_BSJ]
    scored_BS = (nll_BS if options.measure == "nll" else entropy_BS).float()
    # A non-finite output must not pass for tokens without a score.
    broken_BS = batch.is_target_BS & ~scored_BS.isfinite()
    scored_BS = torch.where(batch.is_target_BS, scored_BS, torch.nan)
    scored_BS = scored_BS.masked_fill(broken_BS, -1.0)
    gathered = [_gather(part, engine.layout) for part in (scored_BS, *kept)]
    if not engine.layout.is_main:
        return None
    return _Rows(*(_rows_in_order(parts, engine.layout) for parts in gathered))


def _gather(part: Tensor, layout: Layout) -> list[Tensor]:
    """Those of all ranks, on the first one; alone it writes, and they may be many."""
    part = part.contiguous()
    gathered = [torch.empty_like(part) for _ in range(layout.world_size)] if layout.is_main else []
    dist.gather(part, gathered or None)
    return gathered


def _rows_in_order(gathered: list[Tensor], layout: Layout) -> Tensor:
    """Shards of neighbouring ranks make up rows; groups of them follow each other."""
    groups = [
        torch.cat(gathered[first : first + layout.sp_size], dim=1)
        for first in range(0, layout.world_size, layout.sp_size)
    ]
    return torch.cat(groups)


def _keep(
    writer: ScoresWriter,
    pack: PackIndex,
    split: Literal["train", "val"],
    rows: _Rows,
    *,
    first: int,
    num_done: int | None,
) -> str | None:
    """Write the rows; returns an error message, if any, for all ranks to raise."""
    if (rows.values_RT < 0).any():
        return f"the model gives NaN or infinity in samples {first} and on of {split}"
    try:
        for row, values_T in enumerate(rows.values_RT.cpu().numpy()):
            if first + row < pack.num_samples(split):
                writer.put_sample(pack, first + row, split, values_T, rows.top_k(row))
        if num_done is not None:
            writer.commit(num_done)
    except (ValueError, OSError) as error:
        return str(error)
    return None
