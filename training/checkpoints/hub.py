"""Pushes an export to a hub of models: one commit with all of it, compared with what is there."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from common.commands import command
from training.checkpoints.manifest import MANIFEST, find_corruption, read_manifest

# httpx's or httpx2's, by the library's version: it also has the errors of connections
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]
_KEPT = (".gitattributes",)
"""The hub's own; what it says of large files stays true."""


@dataclass(frozen=True)
class Pushed:
    """A commit that holds an export, whole."""

    url: str
    revision: str
    num_files: int
    num_bytes: int


def find_export(target: Path) -> Path:
    """The export of a run, or `target` itself if it is one; every byte is checked.

    Raises:
        ValueError: when there is none, or it is damaged.
    """
    folder = target if (target / MANIFEST).is_file() else target / "export"
    if not (folder / MANIFEST).is_file():
        raise ValueError(
            f"{target}: no export; run: {command(f'training export {target}')}, or name a folder "
            "that it wrote"
        )
    if (broken := find_corruption(folder, hashes=True)) is not None:
        raise ValueError(f"{folder}: damaged: {broken}; export again, nothing was pushed")
    return folder


def push_export(
    folder: Path, *, to: str, private: bool = False, replace: bool = False, branch: str = "main"
) -> Pushed:
    """Make `to` on the hub hold this export and nothing else, in one commit.

    Large files are uploaded first and seen by nobody before the commit, so a push that fails leaves
    the repository as it was. HF_ENDPOINT names another hub than huggingface.co.

    Args:
        replace: also of what is no export of ours.

    Raises:
        ValueError: when it was not pushed, and what was left behind.
    """
    try:
        validate_repo_id(to)
    except HFValidationError as error:
        raise ValueError(f"--to {to}: {error}") from None
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="entrodrop")
    state = "nothing was pushed"
    try:
        name = api.create_repo(to, private=private, exist_ok=True).repo_id
        if branch != "main":
            api.create_branch(name, branch=branch, exist_ok=True)
        state = f"no file of {name} was changed"
        there = api.model_info(name, revision=branch)
        if private and not there.private:
            raise ValueError(f"{name} exists and is public: make it private on the hub first")
        found = {each.rfilename for each in there.siblings or []} - {*_KEPT}
        if found and MANIFEST not in found and not replace:
            raise ValueError(
                f"{name} holds {', '.join(sorted(found)[:3])} and is not an export of ours; "
                "--replace makes this export all that it holds"
            )
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = {path.relative_to(folder).as_posix(): path for path in files}
        commit = api.create_commit(
            name,
            [
                *(CommitOperationAdd(path_in_repo=n, path_or_fileobj=p) for n, p in names.items()),
                *(CommitOperationDelete(path_in_repo=n) for n in sorted(found - names.keys())),
            ],
            commit_message=f"Step {read_manifest(folder)['step']}",
            revision=branch,
            parent_commit=there.sha,  # two at a time: one of them fails, and nothing is mixed
        )
        state = f"{name} has the new commit {commit.oid}"
        pushed = api.model_info(name, revision=commit.oid, files_metadata=True)
        if wrong := _first_other(pushed.siblings or [], names):
            raise ValueError(f"{wrong} is not there as it is in {folder}: push again")
    except LocalTokenNotFoundError:
        raise ValueError(f"{to}: {_LOG_IN}; {state}") from None
    except (_HTTP_ERROR, OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{to}: {_reason(error)}; {state}") from None
    num_bytes = sum(path.stat().st_size for path in files)
    return Pushed(f"{api.endpoint}/{name}", commit.oid, len(files), num_bytes)


_LOG_IN = "the hub does not know you: `hf auth login`, or set HF_TOKEN to one that may write"


def _reason(error: Exception) -> str:
    """One line; the library tells of identifiers of requests, and of things to try."""
    while isinstance(error.__cause__, Exception):  # which file, and then why
        error = error.__cause__
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    response: Any = getattr(error, "response", None)
    code = getattr(response, "status_code", None)
    if code == 401 or isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
        return _LOG_IN
    if code == 403:
        return "the hub refuses: this token may not write there"
    if code == 412:
        return "somebody else pushed at the same time: look, and push again"
    text = " ".join(str(error).split()).partition(" For more information check:")[0]
    return text or type(error).__name__


def _first_other(siblings: list[Any], names: dict[str, Path]) -> str | None:
    """A file that the hub has not, or not with the same bytes."""
    there = {each.rfilename: each for each in siblings}
    for name, path in names.items():
        found = there.get(name)
        if found is None or found.size != path.stat().st_size:
            return name
        if found.lfs is not None:
            same = found.lfs.sha256 == _digest(path, hashlib.sha256())
        else:  # a small one: git's own name of it
            header = f"blob {path.stat().st_size}\0".encode()
            same = found.blob_id in (None, _digest(path, hashlib.sha1(header)))
        if not same:
            return name
    return None


def _digest(path: Path, hasher: Any) -> str:
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            hasher.update(piece)
    return str(hasher.hexdigest())
