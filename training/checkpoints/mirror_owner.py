"""Whose the copies at a URL are: run.json beside them names the run and its newest start."""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.checksum import record_file
from common.commands import command
from common.mirror import listed_at, mirrors_below
from common.remote import RemoteError, read_bytes, write_bytes
from training.checkpoints.identity import unaccepted_differences
from training.checkpoints.manifest import MANIFEST, read_manifest, run_key_of

OWNER = "run.json"


@dataclass(frozen=True)
class Owner:
    """A run, and the start of it that sends."""

    run_key: str
    """As in the run's checkpoints."""
    start_key: str
    """Of this start alone: an earlier one that still goes sends no more."""
    run_dir: str
    host: str
    begun: str
    identity: dict[str, Any]
    """What a resume must find unchanged."""

    def __str__(self) -> str:
        return f"{self.run_dir} on {self.host}, started {self.begun}"


def new_owner(run_key: str, run_dir: Path, identity: dict[str, Any]) -> Owner:
    """This start."""
    now = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
    place = str(run_dir.resolve()), socket.gethostname()
    return Owner(run_key, uuid.uuid4().hex[:16], *place, now, identity)


def read_owner(url: str) -> Owner | None:
    """None where no run has begun.

    Raises:
        RemoteError: when it cannot be read.
    """
    text = read_bytes(f"{url}/{OWNER}")
    if text is None:
        return None
    try:
        return Owner(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise RemoteError(f"{url}/{OWNER}: damaged: {error}") from None


def write_owner(url: str, owner: Owner) -> None:
    write_bytes(f"{url}/{OWNER}", json.dumps(asdict(owner), indent=1).encode())


def steps_at(url: str) -> list[str]:
    """Names of the copies of checkpoints there, also of those that are not complete, sorted."""
    return [name for name in mirrors_below(url) if name.startswith("step-")]


def key_of_copies(
    url: str, root: Path, *, identity: dict[str, Any], accepted: Collection[str]
) -> str | None:
    """The key of the run whose copies are there, which this start is to resume; None without any.

    A run that has checkpoints here is known by their key, or if they have none, as they are from
    before it had a mirror, by their copies. Where the disk is empty, its settings must be those of
    the copies.

    Raises:
        ValueError: when the copies are another run's.
    """
    steps = steps_at(url)
    if not steps:
        return None
    owner = read_owner(url)
    if owner is None:
        back = command(f"data_prep mirror {url}/{steps[-1]} {root / steps[-1]}")
        how = "" if any(root.glob("step-*")) else f"; to go on from it, first run: {back}"
        raise ValueError(
            f"checkpoint.mirror {url}: holds {steps[-1]} of a run that no {OWNER} there names, as "
            f"earlier versions left it; choose another URL{how}"
        )
    own = list(_readable(root))
    key = run_key_of(own[0][1]) if own else None
    is_another = key != owner.run_key if key else not any(_is_copied(each, url) for each, _ in own)
    if own and is_another:
        raise _of_another_run(url, owner, steps[-1])
    differing = unaccepted_differences(owner.identity, identity, accepted=accepted)
    if differing and not key:
        raise ValueError(
            f"checkpoint.mirror {url}: holds {steps[-1]} of a run with other settings ({owner}): "
            f"{', '.join(differing)}; choose another URL, or set them back to resume that run"
        )
    return owner.run_key


def refuse_another_run(url: str, run_key: str) -> None:
    """Raise when copies of another run are there."""
    owner, steps = read_owner(url), steps_at(url)
    if steps and owner and owner.run_key != run_key:
        raise _of_another_run(url, owner, steps[-1])


def refuse_another_start(url: str, own: Owner) -> None:
    """Raise when another start, of this run or another, has begun to send there."""
    owner = read_owner(url)
    if owner is None:
        write_owner(url, own)  # somebody has deleted it
    elif owner.start_key != own.start_key:
        what = "this run" if owner.run_key == own.run_key else "another run"
        raise ValueError(
            f"{url}: has been taken over by a later start of {what} ({owner}); end one of the two, "
            "or choose another URL"
        )


def _of_another_run(url: str, owner: Owner, newest: str) -> ValueError:
    return ValueError(
        f"checkpoint.mirror {url}: holds {newest} of another run ({owner}); choose another URL"
    )


def _readable(root: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Checkpoints here and their manifests, the newest first, without those that are damaged."""
    for folder in sorted(root.glob("step-*"), reverse=True):
        with suppress(OSError, ValueError):
            yield folder, read_manifest(folder)


def _is_copied(folder: Path, url: str) -> bool:
    copied = listed_at(f"{url}/{folder.name}").get(MANIFEST)
    return copied == record_file(folder / MANIFEST)
