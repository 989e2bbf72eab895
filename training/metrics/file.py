"""metrics.jsonl: one JSON object per line; append, truncate to a checkpoint, read."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from common.durable import atomic_write

METRICS_FILE = "metrics.jsonl"


def to_line(row: dict[str, Any]) -> str:
    """One line of JSON; NaN and infinities become null, since JSON cannot represent them."""
    return json.dumps(finite(row), allow_nan=False) + "\n"


class MetricsFile:
    """metrics.jsonl, open for appending; rows that a full disk rejects wait for the next write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._waiting = b""
        self._has_warned = False

    def write(self, row: dict[str, Any]) -> None:
        """Append a row as far as the disk has room; a full disk must not end the run."""
        self._waiting += to_line(row).encode()
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            if not self._has_warned:
                print(f"{self._path}: {error.strerror}; rows are kept in memory", file=sys.stderr)
        self._has_warned = bool(self._waiting)

    def close(self) -> None:
        """Report what is lost if the disk is still full."""
        self._file.close()
        if self._waiting:
            num_lost = self._waiting.count(b"\n")
            print(f"{self._path}: {num_lost} rows could not be written", file=sys.stderr)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All rows of a metrics file; a last line truncated by a kill is ignored.

    Raises:
        ValueError: when the file is missing, or a complete line is not a JSON object.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; is this the folder of a run?") from None
    rows = []
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines) and not text.endswith("\n"):
                break
            raise ValueError(
                f"{path}, line {number}: {error}; remove this line to continue"
            ) from None
        if not isinstance(row, dict) or "kind" not in row or "step" not in row:
            raise ValueError(
                f"{path}, line {number}: not a row of metrics; remove this line to continue"
            )
        rows.append(row)
    return rows


def cut_after(path: Path, *, step: int) -> None:
    """Drop the rows of steps that a resume from `step` trains again.

    A kill midway loses nothing.
    """
    if not path.exists():
        return
    kept = [row for row in read_metrics(path) if row["step"] <= step]
    atomic_write(path, "".join(map(to_line, kept)))


def finite(value: Any) -> Any:
    """The same without NaN and infinities, which become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
