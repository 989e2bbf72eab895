"""Reads an evaluation of metrics.jsonl by held-out set; a run with one set lists none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from training.config.heldout import ONLY_SET


def results_by_set(row: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The result of each set by its name: `loss`, `entropy_nats`, `num_targets`, perhaps `bands`.

    Example: `{"loss": 2.0}` is `{"held-out": {"loss": 2.0}}`; an empty row has none.
    """
    return dict(row.get("sets") or ({ONLY_SET: row} if "loss" in row else {}))


def losses_by_set(row: Mapping[str, Any]) -> dict[str, float]:
    """Only the losses, in nats per token; NaN for a null."""
    losses = {name: found.get("loss") for name, found in results_by_set(row).items()}
    return {name: math.nan if loss is None else loss for name, loss in losses.items()}
