"""Whether a replay corpus has enough samples for all epochs, in a run and in its plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol


class Share(Protocol):
    """What an epoch takes of a domain: `data_prep.shards.DomainShare`, which this layer lacks."""

    @property
    def samples(self) -> range: ...
    @property
    def samples_per_epoch(self) -> int: ...
    @property
    def tokens_per_epoch(self) -> int: ...


def refuse_small_replay(
    mixture: Sequence[Share], *, total_samples: int, share: float, corpus: str
) -> None:
    """A run that would see a sample of replay twice.

    An epoch that is begun counts as a whole one: which of its samples come first is drawn.

    Args:
        mixture: whose last domain is the replay.
        total_samples: of the run.
    """
    replay = mixture[-1]
    num_epochs = math.ceil(total_samples / sum(part.samples_per_epoch for part in mixture))
    needed, available = num_epochs * replay.samples_per_epoch, len(replay.samples)
    if needed <= available:
        return
    own_tokens = sum(part.tokens_per_epoch for part in mixture[:-1])
    tokens = available // num_epochs * (replay.tokens_per_epoch / replay.samples_per_epoch)
    most = math.floor(1000 * tokens / (tokens + own_tokens)) / 1000
    remedy = f"a share of at most {most:g}" if most else "fewer train.epochs"
    raise ValueError(
        f"replay.share {share:g} takes {replay.samples_per_epoch:,} samples an epoch, "
        f"{needed:,} in {num_epochs} epochs, but replay.corpus {corpus} has "
        f"{available:,}: a larger corpus, {remedy}, or replay.repeats: true"
    )
