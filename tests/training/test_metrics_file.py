"""A full disk ends no run: rows wait, and TensorBoard is left."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from training.metrics.file import MetricsFile, read_metrics
from training.metrics.tensorboard_writer import Board


class FullFor:
    """A file whose disk is full for some writes and takes five bytes at a time afterwards."""

    def __init__(self, file: Any, num_writes: int) -> None:
        self._file, self._left = file, num_writes

    def write(self, content: bytes) -> int:
        self._left -= 1
        if self._left >= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(content[:5])

    def close(self) -> None:
        self._file.close()


def test_rows_that_the_disk_refuses_wait_for_the_next_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file._file = FullFor(file._file, num_writes=2)  # type: ignore[assignment]
    for step in range(4):
        file.write({"kind": "step", "step": step})
    file.close()
    assert [row["step"] for row in read_metrics(path)] == [0, 1, 2, 3]
    told = capsys.readouterr().err
    assert told.count("No space left on device") == 1
    assert "could not be written" not in told


def test_rows_that_are_lost_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    file = MetricsFile(Path("/dev/full"))
    for step in range(3):
        file.write({"kind": "step", "step": step})
    file.close()
    assert "/dev/full: 3 rows could not be written" in capsys.readouterr().err


def test_tensorboard_is_left_when_it_cannot_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = Board(tmp_path / "tensorboard", purge_step=0)
    shown: list[str] = []

    def refuse(writer: Any) -> None:
        shown.append("asked")
        raise OSError(errno.ENOSPC, "No space left on device")

    board.show(refuse)
    board.show(refuse)
    board.scalar("train/loss", 1.0, 1)
    board.close()
    assert shown == ["asked"]
    assert capsys.readouterr().err.count("writing to TensorBoard stops") == 1


@pytest.mark.parametrize(("seconds", "warns"), [(-3600, False), (3600, True)])
def test_a_clock_that_ran_back_is_noticed_since_tensorboard_would_hide_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seconds: int, warns: bool
) -> None:
    Board(tmp_path, purge_step=0).close()
    (first,) = tmp_path.iterdir()
    *front, began, rest = first.name.split(".", 4)
    earlier = ".".join([*front, f"{int(began) + seconds:010d}", rest])
    first.rename(tmp_path / earlier)
    Board(tmp_path, purge_step=1).close()
    assert (f"{earlier} was begun at a later time" in capsys.readouterr().err) is warns


def test_the_last_line_of_a_row_is_json(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.write({"kind": "step", "step": 1, "loss": float("nan")})
    file.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] is None
