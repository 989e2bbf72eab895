"""Comparing files with the checksums that a manifest gives them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_prep.durable import describe_file
from data_prep.mapped import checked_path
from data_prep.progress import progress_bar
from data_prep.record import FileRecord


def check_checksums(folder: Path, *, files: Sequence[FileRecord]) -> str:
    """Read every byte; a ValueError names the first file that is not what it was."""
    with progress_bar(sum(f.num_bytes for f in files), what="checksums", unit="B") as bar:
        for file in files:
            found = describe_file(checked_path(folder, file)).sha256
            if found != file.sha256:
                raise ValueError(
                    f"{folder / file.name}: damaged: expected sha256 {file.sha256[:16]}, "
                    f"found {found[:16]}"
                )
            bar.update(file.num_bytes)
    return f"{len(files)} files"
