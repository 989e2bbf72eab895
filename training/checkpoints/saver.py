"""When a run's checkpoints are written: at once, or during the steps that follow."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from training.checkpoints.mirror import CheckpointMirror
from training.checkpoints.progress import Progress
from training.checkpoints.save import CheckpointSave, SaveFailed
from training.config.sections import Checkpoint
from training.model.engine import Engine
from training.model.shadow import AveragedWeights
from training.ranks.run_state import RunRecord
from training.regularisers.entropy_cache import EntropyCache


class Saver:
    """At most one save is in progress. Every method is called by all ranks at the same step."""

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        *,
        identity: dict[str, Any],
        settings: Checkpoint,
        cache: EntropyCache | None,
        average: AveragedWeights | None,
        record: RunRecord,
    ) -> None:
        """Save into `folder`; for the others see `CheckpointSave` and `RunRecord.saved`."""
        self.folder = folder
        self._engine, self._identity, self._settings = engine, identity, settings
        self._cache, self._average, self._record = cache, average, record
        self._under_way: CheckpointSave | None = None
        self.mirror = CheckpointMirror(settings.mirror, engine.layout)

    def save(self, progress: Progress) -> None:
        """An intermediate save: in the background, if the recipe says so.

        Raises:
            SaveFailed: for this save or the one before, if the recipe ends the run on a failed one.
        """
        self.finish()
        with self._reporting_failures():
            self._under_way = self._begin(progress, in_background=self._settings.in_background)
            if not self._settings.in_background:
                self._publish()

    def save_last(self, progress: Progress) -> None:
        """Save and wait for it; no later save would make up for a failure.

        Raises:
            SaveFailed: whatever the recipe says.
        """
        self.finish()
        self._under_way = self._begin(progress, in_background=False)
        self._publish()

    def publish_when_written(self) -> None:
        """Finish the current save if no rank is still writing; one all-reduce of a number."""
        if self._under_way is None:
            return
        num_writing = torch.tensor(
            [0 if self._under_way.is_written else 1], device=self._engine.layout.device
        )
        dist.all_reduce(num_writing)
        if int(num_writing) == 0:
            self.finish()

    def finish(self) -> None:
        """Wait for the current save, if any."""
        if self._under_way is not None:
            with self._reporting_failures():
                self._publish()

    def close(self) -> None:
        """Wait for the current save and for the copy of the last one.

        Raises:
            ValueError: when the copy could not be made.
        """
        self.finish()
        self._engine.watchdog.enter("save: mirror", slow=True)
        self.mirror.finish()

    def _begin(self, progress: Progress, *, in_background: bool) -> CheckpointSave:
        self._engine.watchdog.enter("save", slow=True)
        self._engine.memory.enter("save")
        return CheckpointSave(
            self._engine,
            self.folder,
            progress=progress,
            identity=self._identity,
            cache=self._cache,
            average=self._average,
            in_background=in_background,
        )

    def _publish(self) -> None:
        save, self._under_way = self._under_way, None
        assert save is not None
        self.mirror.add(save.publish(self._settings))
        self._record.saved(save.progress.step)

    @contextmanager
    def _reporting_failures(self) -> Iterator[None]:
        try:
            yield
        except SaveFailed as error:
            if self._settings.on_failure == "stop":
                raise
            if self._engine.layout.is_main:
                print(f"{error}\nTraining continues; the next save will be tried.", file=sys.stderr)
