"""The steps of the proof: what each runs, its limit of seconds, and the process that runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.gpu_proof import checks, heads, launcher, models
from benchmarks.gpu_proof.rows import Figures, Row, run_row

Step = Callable[[str, bool], Iterator[Row]]
"""Rows of a device, "cuda" or "cpu", in shapes that are small or not."""


def _each(*works: Callable[[str, bool], Figures]) -> Step:
    """Functions as rows of one process, so that its start is paid once."""

    def rows(device: str, small: bool) -> Iterator[Row]:
        for work in works:
            yield work.__name__, partial(work, device, small)

    return rows


STEPS: dict[str, tuple[Step, int]] = {
    "kernels": (_each(checks.kernels, checks.kernels_beyond_int32), 40),
    "attention": (_each(checks.attention, checks.documents, checks.head), 40),
    "fused_layers": (_each(checks.fused_layers), 45),
    "skipped_step": (_each(checks.skipped_step), 25),
    "heads": (heads.rows, 65),
    "train_0.6b": (models.rows_of_small_model, 90),
    "train_0.6b_zero3": (models.rows_of_zero3, 45),
    "train_0.6b_liger": (models.rows_of_liger, 30),
    "train_8b_cut": (models.rows_of_cut_model, 40),
    "launcher": (launcher.rows, launcher.LIMIT_SECONDS),
}
"""Each with its limit of seconds."""


def run_step(name: str, device: str, small: bool, rows_file: Path) -> None:
    """In this process; each row is appended to the file as soon as it is there.

    A row that fails does not keep the next from running.
    """
    step, _ = STEPS[name]
    for row in step(device, small):
        run_row(rows_file, name, row)
