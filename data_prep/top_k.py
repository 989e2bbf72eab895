"""The likeliest next tokens of a position on disk: ids with log-probabilities, the rest as one.

S tokens, K likeliest tokens of each, J = K + 1.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from data_prep.record import FileRecord, Record


class TopKManifest(Record):
    """How many are kept of each position, and the files: one per shard, in the shards' order."""

    k: Annotated[int, Field(ge=1)]
    files: tuple[FileRecord, ...]


class TopK(NamedTuple):
    """What may stand at each position instead of its token, by a model's prediction."""

    ids: np.ndarray
    """`[S, K]` int32, the likeliest first."""
    log_probs: np.ndarray
    """`[S, J]` float16, nats: of each, then of all other ids together; NaN for no prediction."""

    def find_mistake(self, *, vocab_size: int) -> str | None:
        """What cannot be a prediction over that many ids; None where all can."""
        if self.ids.size and not 0 <= int(self.ids.min()) <= int(self.ids.max()) < vocab_size:
            return f"an id that is not below {vocab_size}"
        if (self.log_probs > 0).any():
            return "a log-probability above 0"
        is_blank = np.isnan(self.log_probs)
        if (is_blank != is_blank[:, :1]).any():
            return "a log-probability that is no number"
        return None


def row_dtype(k: int, *, ids: np.dtype) -> np.dtype:
    """What a token takes: K ids of the corpus's own type, then J float16."""
    return np.dtype([("ids", ids, (k,)), ("log_probs", "<f2", (k + 1,))])


def blank_rows(num_tokens: int, dtype: np.dtype) -> np.ndarray:
    """Rows that say of each token that there is nothing; of scores, too."""
    if dtype.names is None:
        return np.full(num_tokens, np.nan, dtype=dtype)
    rows = np.zeros(num_tokens, dtype=dtype)
    rows["log_probs"] = np.nan
    return rows


def no_top_k(count: int, k: int) -> TopK:
    """Of tokens without a prediction."""
    return TopK(np.zeros((count, k), np.int32), np.full((count, k + 1), np.nan, np.float16))
