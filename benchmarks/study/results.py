"""The results of a study: one JSON line per finished run, appended atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_results(path: Path) -> list[Row]:
    """All rows; a last line that a kill cut short is skipped.

    Raises:
        ValueError: when another line is not a JSON object.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(True), start=1):
        if not line.endswith("\n"):
            break
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: {error}; remove this line") from None
    return rows


def refuse_other_studies(
    rows: Iterable[Row], *, bases: Mapping[str, str], settings: Mapping[str, str]
) -> None:
    """Refuse to mix runs that start from other weights or have another length.

    Args:
        bases: by size, the identity of the current base model.
        settings: by domain, that of the setting, as `Setting.identity` gives it.

    Raises:
        ValueError: naming a run of another study.
    """
    for row in rows:
        for what, found, known in (
            ("base model", row["base"], bases.get(row["size"])),
            ("setting", row.get("setting"), settings.get(row["domain"])),
        ):
            if known is not None and found != known:
                raise ValueError(
                    f"results: run {row['key']} is of {what} {found}, current is {known}; keep "
                    "results of other base models and settings apart: choose another --results"
                )


def append_result(path: Path, row: Row) -> None:
    """Append one line in one write, after truncating an incomplete last line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (json.dumps(row, allow_nan=False, separators=(",", ":")) + "\n").encode()
    with path.open("ab") as file:
        file.truncate(_end_of_last_line(path))
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _end_of_last_line(path: Path) -> int:
    return path.read_bytes().rfind(b"\n") + 1
