"""TensorBoard's writer; a full disk ends it, but not the run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Board:
    """Writes until the disk is full; the next start has a new one."""

    def __init__(self, folder: Path, *, purge_step: int, is_wanted: bool = True) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None
        if not is_wanted:
            return
        # 1.5 seconds of import that only the writing rank pays
        from torch.utils.tensorboard import SummaryWriter

        if later := _files_of_later(folder):
            print(
                f"{folder}: {later[-1].name} was begun at a later time than it is now; TensorBoard "
                "reads files by the time in their names, and may hide steps of this start. "
                "metrics.jsonl and the report have all; set the clock",
                file=sys.stderr,
            )
        try:
            self._writer = SummaryWriter(str(folder), purge_step=purge_step)
        except OSError as error:
            self._give_up(error)

    def show(self, draw: Callable[[SummaryWriter], object]) -> None:
        """Let `draw` write; a write that fails in its thread surfaces at one of the next calls."""
        if self._writer is None:
            return
        try:
            draw(self._writer)
        except OSError as error:
            self._give_up(error)

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Add a point to a curve."""
        self.show(lambda writer: writer.add_scalar(tag, value, step))

    def text(self, tag: str, text: str, step: int) -> None:
        """Markdown."""
        self.show(lambda writer: writer.add_text(tag, text, step))

    def flush(self) -> None:
        """Wait until everything is in the file."""
        self.show(lambda writer: writer.flush())

    def close(self) -> None:
        """Flush what is left."""
        self.show(lambda writer: writer.close())
        self._writer = None

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        print(f"{self._folder}: {error.strerror}; writing to TensorBoard stops", file=sys.stderr)


def _files_of_later(folder: Path) -> list[Path]:
    """Of earlier starts, whose names TensorBoard sorts after those that are made now."""
    now = f"events.out.tfevents.{int(time.time()):010d}."
    return sorted(path for path in folder.glob("events.out.tfevents.*") if path.name[:31] > now)
