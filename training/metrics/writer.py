"""Output of a run in progress: metrics.jsonl, TensorBoard and a progress bar with ETA."""

from __future__ import annotations

import math
import sys
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from common.progress import StepProgress
from training.metrics.file import METRICS_FILE, MetricsFile, cut_after, read_metrics
from training.metrics.heldout_rows import results_by_set
from training.metrics.overfit_warning import OverfitWatch
from training.metrics.tags import CHARTS, EVALUATION_TAGS, RANK_TAGS, STEP_TAGS
from training.metrics.tensorboard_writer import Board
from training.metrics.tokens import TokenPicture, TokenTexts, add_histogram, as_markdown
from training.metrics.trackers import TENSORBOARD, Trackers


class MetricsWriter:
    """Records and shows the numbers of a run; on all ranks but one every method does nothing."""

    def __init__(
        self,
        run_dir: Path,
        *,
        total_steps: int,
        start_step: int,
        enabled: bool,
        trackers: Trackers | None = None,
    ) -> None:
        """Open the files for appending after `start_step`.

        Args:
            run_dir: gets metrics.jsonl and tensorboard/; rows of later steps, left by a run that
                stopped after its last checkpoint, are cut.
            total_steps: steps of the whole run, for the progress bar.
            start_step: steps before this start, 0 for a new run.
            enabled: true on rank 0 alone.
            trackers: beside metrics.jsonl; by default TensorBoard alone.
        """
        self._enabled = enabled
        if not enabled:
            return
        run_dir.mkdir(parents=True, exist_ok=True)
        self._run_dir = run_dir
        self._trackers = trackers or Trackers((TENSORBOARD,))
        self._trackers.begin()
        self._texts: TokenTexts | None = None
        # A new run keeps no rows: those before its first checkpoint belong to a start that failed.
        self._open_after(start_step if start_step > 0 else -1)
        self._total_steps = total_steps
        self._heldout: dict[str, Any] = {}
        self._last_step: dict[str, Any] = {}
        self._is_line_due = False
        self._progress = StepProgress(total_steps, what="training", done=start_step)

    def _open_after(self, step: int) -> None:
        path = self._run_dir / METRICS_FILE
        if step > 0 and not path.exists():
            print(f"WARNING: {path} is gone, and the rows up to step {step}", file=sys.stderr)
        cut_after(path, step=step)
        self._overfit = OverfitWatch()
        self._evaluations: dict[int, dict[str, Any]] = {}
        for row in read_metrics(path) if path.exists() else []:
            self._overfit.saw(row)
            if row["kind"] == "evaluation":
                self._evaluations[row["step"]] = row
        self._file = MetricsFile(path)
        self._board = Board(
            self._run_dir / "tensorboard",
            purge_step=max(step + 1, 0),
            is_wanted=TENSORBOARD in self._trackers.names,
        )
        self._board.show(lambda writer: writer.add_custom_scalars(CHARTS))

    def evaluation(self, step: int) -> dict[str, Any] | None:
        """The evaluation of `step`, if there was one when the files were opened; on rank 0."""
        return self._evaluations.get(step) if self._enabled else None

    def rewind(self, step: int) -> None:
        """Drop the rows of steps after `step`, which the run repeats."""
        if self._enabled:
            self._board.close()
            self._file.close()
            self._open_after(step)
            self._last_step, self._is_line_due = {}, False
            self._progress.show(step, self._total_steps)

    def tell(self, sentence: str) -> None:
        """Show it beside the progress; nothing is recorded."""
        if self._enabled:
            tqdm.write(sentence, file=sys.stderr)

    def log_run(self, facts: dict[str, Any]) -> None:
        """Record what is known before the first step."""
        if self._enabled:
            self._write({"kind": "run", "step": 0} | facts)

    def log_step(self, row: dict[str, Any]) -> None:
        """Record and show one optimizer step; `row` holds `step` and keys of `STEP_TAGS`."""
        if self._enabled:
            self._write({"kind": "step"} | row)
            self._add_scalars(row, STEP_TAGS)
            self._last_step, self._is_line_due = row, row["step"] == self._total_steps
            self._show_step(row)

    def _show_step(self, row: dict[str, Any], *, always: bool = False) -> None:
        numbers = {"loss": _number(row.get("loss"))}
        for name, found in results_by_set(self._heldout).items():
            if found.get("loss") is not None:
                numbers[name] = _number(found["loss"]) + _change(found.get("forgetting_nats"))
        if row.get("drop_rate_realised") is not None:
            numbers["dropped"] = f"{100 * row['drop_rate_realised']:.0f}%"
        self._progress.show(row["step"], self._total_steps, numbers=numbers, always=always)

    def log_epoch(self, row: dict[str, Any]) -> None:
        """Record and show what an epoch trained on: `finished_epoch` and `samples_digest`."""
        if self._enabled:
            self._write({"kind": "epoch"} | row)
            self.tell(
                f"epoch {row['finished_epoch']} ended; digest of its samples "
                f"{row['samples_digest']}, the same on any layout"
            )

    def log_ranks(self, row: dict[str, Any]) -> None:
        """Record a report of `rank_report`; name the slow rank where it costs a tenth."""
        if self._enabled:
            self._write({"kind": "ranks"} | row)
            self._add_scalars(row, RANK_TAGS)
            if row["late_share"] > 0.1:
                self.tell(
                    f"step {row['step']}: rank {row['slowest_rank']} keeps the others waiting for "
                    f"{row['late_seconds']:.2f} s per step, {100 * row['late_share']:.0f}% of it"
                )

    def log_bad_step(self, row: dict[str, Any]) -> None:
        """Record and show what was wrong with a step: `text`, and `samples` by number."""
        if self._enabled:
            self._write({"kind": "bad_step"} | row)
            self._text("train/bad_step", row["text"], row["step"])
            self.tell(row["text"])

    def log_evaluation(self, row: dict[str, Any]) -> None:
        """Record and show one evaluation.

        Args:
            row: `step`, keys of `EVALUATION_TAGS` and `bands`; in `sets` the same by name of a set.
        """
        if self._enabled:
            self._write({"kind": "evaluation"} | row)
            self._add_evaluation(row, step=row["step"], prefix="heldout/")
            for name, found in row.get("sets", {}).items():
                self._add_evaluation(found, step=row["step"], prefix=f"heldout/{name}/")
            if texts := row.get("continuations"):
                self._text("heldout/continuations", as_markdown(texts), row["step"])
            self._board.flush()
            self._heldout = row
            # also of a run that ends early, which is known when it closes
            self._is_line_due = bool(self._last_step)
            if row["step"] == self._total_steps:
                self._show_end()

    def _show_end(self) -> None:
        """The last step with the losses of the evaluation after it."""
        if self._is_line_due:
            self._is_line_due = False
            self._show_step(self._last_step, always=True)

    def _add_evaluation(self, found: dict[str, Any], *, step: int, prefix: str) -> None:
        tags = {key: tag.replace("heldout/", prefix) for key, tag in EVALUATION_TAGS.items()}
        self._add_scalars(found | {"step": step}, tags)
        for band in found.get("bands", []):
            self._add_scalars(band | {"step": step}, {"loss": f"{prefix}band_{band['band']}"})

    def log_tokens(self, picture: TokenPicture, *, step: int, tokenizer: Path) -> None:
        """Show the entropies of a step's tokens and which tokens of one sample dropped.

        Args:
            tokenizer: its folder in the corpus.
        """
        if self._enabled:
            counts = {"all": picture.entropy_counts, "dropped": picture.dropped_counts}
            for name, found in counts.items():
                tag = f"entropy/tokens_{name}_nats"
                self._board.show(partial(add_histogram, tag=tag, counts=found, step=step))
            if self._texts is None:
                self._texts = TokenTexts(tokenizer)
            self._text("dropout/sample", self._texts.marked(picture), step)

    def close(self, *, failed: bool = False) -> None:
        """Flush everything and end the progress bar; may be called again.

        Args:
            failed: what trackers show of the run, until a resume.
        """
        if self._enabled:
            self._enabled = False
            self._show_end()
            self._progress.close()
            self._board.close()
            self._file.close()
            self._trackers.close(failed=failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(failed=error is not None)

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(row)
        warning = self._overfit.saw(row)
        if warning:
            self.tell(f"step {row['step']}: {warning}")
            self._text("heldout/overfitting", str(warning), row["step"])
            self._write({"kind": "warning", "step": row["step"], "text": str(warning)})

    def _add_scalars(self, row: dict[str, Any], tags: dict[str, str]) -> None:
        given = {tag: row.get(key) for key, tag in tags.items()}
        found = {t: v for t, v in given.items() if v is not None and math.isfinite(v)}
        for tag, value in found.items():
            self._board.scalar(tag, value, row["step"])
        if found:
            self._trackers.scalars(found, row["step"])

    def _text(self, tag: str, text: str, step: int) -> None:
        self._board.text(tag, text, step)
        self._trackers.text(tag, text, step)


def _change(value: float | None) -> str:
    """In parentheses, since before the first step; nothing when that is not known."""
    return "" if value is None or not math.isfinite(value) else f" ({value:+.3f})"


def _number(value: float | None) -> str:
    return "?" if value is None or not math.isfinite(value) else f"{value:.3f}"
