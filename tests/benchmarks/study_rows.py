"""Rows of a study, without its runs."""

from __future__ import annotations

from benchmarks.study.jobs import (
    Job,
)


def row(arm: str, seed: int, losses: list[float], **chosen: float) -> dict:
    job = Job("tiny", "code", arm, seed, tuple(chosen.items()))
    epochs = [float(i) for i in range(len(losses))]
    curve = {"epoch": epochs, "loss": losses, "bands": [[loss] for loss in losses]}
    return job.as_row() | {"curve": curve, "final": {"domain_loss": losses[-1]}}
