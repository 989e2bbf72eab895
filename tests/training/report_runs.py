"""Run folders with made-up numbers, as reports read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml


def write_run(
    run_dir: Path,
    *,
    heldout: list[float],
    bands: int = 2,
    recipe: dict[str, Any] | None = None,
    sets: dict[str, list[float]] | None = None,
    averaged: list[float] | None = None,
) -> Path:
    """A run of two steps an evaluation, one evaluation an epoch, the first at step 0.

    Args:
        heldout: losses that decide what is best.
        sets: losses of each held-out set.
        averaged: losses of the averaged weights.
    """
    facts = {"world_size": 2, "corpus": "<b>", "total_steps": 2 * len(heldout) - 2}
    rows: list[dict[str, Any]] = [{"kind": "run", "step": 0} | facts]
    for epoch, loss in enumerate(heldout):
        for step in (2 * epoch - 1, 2 * epoch) if epoch else ():
            rows.append(
                {
                    "kind": "step",
                    "step": step,
                    "tokens": 100 * step,
                    "epoch": step / 2,
                    "loss": 4.0 / step,
                    "grad_norm": 1.0,
                    "drop_rate_asked": 0.1,
                    "drop_rate_realised": 0.2,
                    "entropy_threshold_nats": 1.0,
                    "mean_entropy_nats": 2.0,
                    "tokens_per_second": 1000.0,
                    "seconds": 0.5,
                }
            )
        found = [
            {"band": b, "from_nats": b - 1.0, "to_nats": float(b), "loss": loss, "num_targets": 9}
            for b in range(1, bands + 1)
        ]
        rows.append(
            {"kind": "evaluation", "step": 2 * epoch, "epoch": float(epoch), "loss": loss}
            | ({"bands": found} if bands else {})
            | ({"ema_loss": averaged[epoch]} if averaged else {})
            | ({"sets": {name: {"loss": of[epoch]} for name, of in sets.items()}} if sets else {})
        )
    run_dir.mkdir(parents=True)
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if recipe:
        resolved = {"run_dir": str(run_dir)} | recipe
        (run_dir / "recipe.resolved.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False))
    return run_dir


def write_seeds(folder: Path, regulariser: str, finals: dict[int, float]) -> list[Path]:
    """Runs of one recipe, one a seed, that end at these held-out losses and were best at 2.0."""
    return [
        write_run(
            folder / f"{regulariser}-seed{seed}",
            heldout=[3.0, 2.0, 2.1, final],
            recipe={"seed": seed, "regulariser": regulariser},
        )
        for seed, final in finals.items()
    ]
