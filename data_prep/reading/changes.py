"""When inputs were last changed, so that a build is of one state of them, also after a resume."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from common.remote import is_remote, iter_files
from data_prep.reading.parts import InputFile, Kind

if TYPE_CHECKING:
    from data_prep.reading.sources import DomainInput


def modified_ns(path: str, *, kind: Kind) -> int:
    """When an input on a disk was last changed, in nanoseconds; -1 when it is gone."""
    file = Path(path)
    if kind not in ("arrow", "megatron"):
        try:
            return file.stat().st_mtime_ns
        except OSError:
            return -1
    if file.is_dir():
        files = [file / "state.json", *file.glob("*.arrow")]
    else:
        files = [file, file.with_suffix(".bin")] if kind == "megatron" else [file]
    times = [f.stat().st_mtime_ns for f in files if f.exists()]
    return max(times, default=-1)


def refuse_changed(domains: Sequence[DomainInput]) -> None:
    """An input that changed while it was read may be half old and half new."""
    for domain in domains:
        files = iter(domain.files)
        for source in domain.sources:
            own = islice(files, source.num_files)
            for file, now in _versions_now(own, source=source.path):
                if now != file.modified_ns:
                    raise ValueError(f"{file.path}: changed while being read; build again")


def _versions_now(
    files: Iterable[InputFile], *, source: str
) -> Iterator[tuple[InputFile, int | None]]:
    """The files of an --input, each with its present version; None for an object that is gone."""
    if is_remote(source):
        found = iter_files(source)  # in the same order
        for file in files:
            yield file, next((now.version for now in found if now.url == file.path), None)
        return
    for file in files:
        if file.kind != "hub":
            yield file, modified_ns(file.path, kind=file.kind)
