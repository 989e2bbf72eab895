"""Checks files against the checksums in their manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.progress import progress_bar
from data_prep.durable import describe_file
from data_prep.mapped import checked_path
from data_prep.record import FileRecord


def check_checksums(folder: Path, *, files: Sequence[FileRecord]) -> str:
    """Read every byte; raise a ValueError for the first file that does not match."""
    with progress_bar(sum(f.num_bytes for f in files), what="checksums", unit="B") as bar:
        for file in files:
            _check_file(folder, file)
            bar.update(file.num_bytes)
    return f"{len(files)} files"


def check_share(files: Sequence[tuple[Path, FileRecord]], *, rank: int, world_size: int) -> None:
    """Check a rank's share of the files, each given with its folder; all ranks check them all.

    Raises:
        ValueError: for the first file that does not match its checksum.
    """
    # largest first, round-robin, so that the shares are about equal
    by_size = sorted(files, key=lambda each: (-each[1].num_bytes, each[0] / each[1].name))
    own = by_size[rank::world_size]
    num_bytes = sum(file.num_bytes for _, file in own)
    with progress_bar(num_bytes, what="checksums", unit="B", shows=rank == 0, delay=5) as bar:
        for folder, file in own:
            _check_file(folder, file)
            bar.update(file.num_bytes)


def _check_file(folder: Path, file: FileRecord) -> None:
    found = describe_file(checked_path(folder, file)).sha256
    if found != file.sha256:
        raise ValueError(
            f"{folder / file.name}: damaged: expected sha256 {file.sha256[:16]}, "
            f"found {found[:16]}; copy or build it again"
        )
