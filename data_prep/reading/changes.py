"""When inputs were last changed, so that a build is of one state of them, also after a resume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.remote import is_remote, list_files
from data_prep.reading.parts import Kind

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
    sources = [source.path for domain in domains for source in domain.sources]
    objects = {
        file.url: file.version for url in sources if is_remote(url) for file in list_files(url)
    }
    for domain in domains:
        for file in domain.files:
            if file.kind == "hub":
                continue
            is_far = is_remote(file.path)
            found = objects.get(file.path) if is_far else modified_ns(file.path, kind=file.kind)
            if found != file.modified_ns:
                raise ValueError(f"{file.path}: changed while being read; build again")
