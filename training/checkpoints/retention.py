"""Which checkpoints to keep: the last ones, the best ones, and one every so many steps."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from training.checkpoints.identity import judged_alike
from training.checkpoints.manifest import judged_loss, read_manifest
from training.config.sections import Checkpoint


@dataclass(frozen=True)
class Saved:
    """What the rules need to know of a complete checkpoint."""

    step: int
    heldout_loss: float | None
    """Of the newest evaluation at or before the save, in nats per token."""
    judged_by: int = 0
    """Alike for those whose losses can be compared: a resume may accept another one."""


def checkpoints_to_delete(
    saved: Sequence[Saved],
    *,
    newest_step: int,
    keep_last: int,
    keep_best: int = 0,
    keep_every_steps: int | None = None,
) -> list[int]:
    """Steps of the checkpoints that no rule keeps, ascending.

    Args:
        saved: all complete ones.
        newest_step: of the one just saved. Later ones belong to a branch that the run has left, by
            resuming from an older checkpoint; they do not count and are deleted.
        keep_last, keep_best: how many of the newest, and of those with the lowest held-out loss,
            among losses that can be compared. Of several saves after the same evaluation the first
            is the best.
        keep_every_steps: multiples of it stay.
    """
    line = sorted((one for one in saved if one.step <= newest_step), key=lambda one: one.step)
    judged = [one for one in line if one.heldout_loss is not None]
    judged = [one for one in judged if math.isfinite(one.heldout_loss or 0.0)]
    stays = {one.step for one in line[-keep_last:]}
    for kind in {one.judged_by for one in judged}:
        alike = [one for one in judged if one.judged_by == kind]
        alike.sort(key=lambda one: (one.heldout_loss, one.step))
        stays |= {one.step for one in alike[:keep_best]}
    if keep_every_steps is not None:
        stays |= {one.step for one in line if one.step % keep_every_steps == 0}
    return sorted(one.step for one in saved if one.step not in stays)


def prune(root: Path, *, newest_step: int, settings: Checkpoint) -> None:
    """Remove `checkpoints_to_delete`; one that cannot be read or removed is reported and stays."""
    folders: dict[int, Path] = {}
    saved: list[Saved] = []
    kinds: list[dict[str, Any]] = []
    for folder in root.glob("step-*"):
        try:
            manifest = read_manifest(folder)
        except (OSError, ValueError) as error:  # for a person to look at
            _print_once(f"{folder}: not a readable checkpoint, left in place: {error}")
            continue
        folders[manifest["step"]] = folder
        alike = (number for number, kind in enumerate(kinds) if judged_alike(kind, manifest))
        kind = next(alike, len(kinds))
        kinds += [manifest] if kind == len(kinds) else []
        saved.append(Saved(manifest["step"], judged_loss(manifest), kind))
    for step in checkpoints_to_delete(
        saved,
        newest_step=newest_step,
        keep_last=settings.keep_last,
        keep_best=settings.keep_best,
        keep_every_steps=settings.keep_every_steps,
    ):
        try:
            remove(folders[step])
        except OSError as error:
            print(f"{folders[step]} could not be removed: {error}", file=sys.stderr, flush=True)


@cache
def _print_once(text: str) -> None:
    """Not again after each save."""
    print(text, file=sys.stderr, flush=True)


def remove(folder: Path) -> None:
    """Delete a checkpoint; a kill midway leaves nothing that looks complete."""
    doomed = folder.with_name(f".removed-{folder.name}")
    folder.rename(doomed)
    shutil.rmtree(doomed)
