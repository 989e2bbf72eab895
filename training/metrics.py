"""What a run says while it runs: metrics.jsonl, TensorBoard and a progress bar with ETA."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from training.metrics_file import METRICS_FILE, cut_after, to_line

STEP_TAGS = {
    "loss": "train/loss",
    "objective": "train/objective",
    "lr": "train/learning_rate",
    "grad_norm": "train/gradient_norm",
    "tokens": "train/tokens",
    "epoch": "train/epoch",
    "drop_rate_asked": "dropout/rate_asked",
    "drop_rate_realised": "dropout/rate_realised",
    "gamma": "dropout/gamma",
    "entropy_threshold_nats": "entropy/threshold_nats",
    "mean_entropy_nats": "entropy/mean_nats",
    "tokens_per_second": "speed/tokens_per_second",
    "seconds": "speed/step_seconds",
}
EVALUATION_TAGS = {
    "loss": "heldout/loss",
    "entropy_nats": "heldout/entropy_nats",
    "seconds": "speed/evaluation_seconds",
}


class MetricsWriter:
    """Keeps and shows the numbers of a run; on all ranks but one every method does nothing."""

    def __init__(self, run_dir: Path, *, total_steps: int, start_step: int, enabled: bool) -> None:
        """Open the files for appending after `start_step`.

        Args:
            run_dir: gets metrics.jsonl and tensorboard/; rows of later steps, left by a run that
                stopped after its last checkpoint, are cut.
            total_steps: steps of the whole run, for the progress bar.
            start_step: steps done before this start, 0 for a new run.
            enabled: true on rank 0 alone.
        """
        self._enabled = enabled
        if not enabled:
            return
        # 1.5 seconds of import that only this rank has to pay
        from torch.utils.tensorboard import SummaryWriter

        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / METRICS_FILE
        # A new run keeps nothing: rows before its first checkpoint belong to a start that failed.
        cut_after(path, step=start_step if start_step > 0 else -1)
        self._file = path.open("a", encoding="utf-8")
        self._tensorboard = SummaryWriter(
            str(run_dir / "tensorboard"), purge_step=start_step + 1 if start_step > 0 else 0
        )
        self._progress = _Progress(total_steps=total_steps, start_step=start_step)

    def log_run(self, facts: dict[str, Any]) -> None:
        """Keep what is known before the first step."""
        if self._enabled:
            self._write({"kind": "run", "step": 0} | facts)

    def log_step(self, row: dict[str, Any]) -> None:
        """Keep and show one optimizer step; `row` holds `step` and keys of `STEP_TAGS`."""
        if self._enabled:
            self._write({"kind": "step"} | row)
            self._add_scalars(row, STEP_TAGS)
            self._progress.show_step(row)

    def log_evaluation(self, row: dict[str, Any]) -> None:
        """Keep and show one evaluation; `row` holds `step`, keys of `EVALUATION_TAGS`, `bands`."""
        if self._enabled:
            self._write({"kind": "evaluation"} | row)
            self._add_scalars(row, EVALUATION_TAGS)
            for band in row.get("bands", []):
                tags = {"loss": f"heldout/band_{band['band']}"}
                self._add_scalars(band | {"step": row["step"]}, tags)
            self._tensorboard.flush()
            self._progress.show_evaluation(row)

    def close(self) -> None:
        """Flush everything and end the progress bar; calling it again does no harm."""
        if self._enabled:
            self._enabled = False
            self._progress.close()
            self._tensorboard.close()
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(to_line(row))
        self._file.flush()

    def _add_scalars(self, row: dict[str, Any], tags: dict[str, str]) -> None:
        for key, tag in tags.items():
            value = row.get(key)
            if value is not None and math.isfinite(value):
                self._tensorboard.add_scalar(tag, value, row["step"])


class _Progress:
    """A bar on a terminal; in a log file, where a bar would be one endless line, rare lines."""

    SECONDS_BETWEEN_LINES = 10.0

    def __init__(self, *, total_steps: int, start_step: int) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._heldout: float | None = None
        self._step, self._start_step, self._total_steps = start_step, start_step, total_steps
        self._began = time.monotonic()
        self._last_line = self._began
        self._bar = tqdm(
            total=total_steps,
            initial=start_step,
            desc="training",
            unit="step",
            dynamic_ncols=True,
            disable=not self._is_terminal,
        )

    def show_step(self, row: dict[str, Any]) -> None:
        shown = {"loss": _number(row.get("loss"))}
        if self._heldout is not None:
            shown["held-out"] = _number(self._heldout)
        if row.get("drop_rate_realised") is not None:
            shown["dropped"] = f"{100 * row['drop_rate_realised']:.0f}%"
        if self._is_terminal:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(row["step"] - self._step)
        self._step = row["step"]
        now = time.monotonic()
        is_due = now - self._last_line >= self.SECONDS_BETWEEN_LINES
        if not self._is_terminal and (is_due or self._step == self._total_steps):
            self._last_line = now
            self._print_line(now - self._began, shown)

    def show_evaluation(self, row: dict[str, Any]) -> None:
        self._heldout = row.get("loss")

    def close(self) -> None:
        self._bar.close()

    def _print_line(self, elapsed_seconds: float, shown: dict[str, str]) -> None:
        seconds_a_step = elapsed_seconds / max(self._step - self._start_step, 1)
        left = tqdm.format_interval(seconds_a_step * (self._total_steps - self._step))
        numbers = "  ".join(f"{name} {value}" for name, value in shown.items())
        share = 100 * self._step / self._total_steps
        print(
            f"step {self._step}/{self._total_steps} ({share:.0f}%)  {numbers}  ETA {left}",
            file=sys.stderr,
            flush=True,
        )


def _number(value: float | None) -> str:
    return "?" if value is None or not math.isfinite(value) else f"{value:.3f}"
