"""Pushes an export to a hub of models: one commit with all of it, compared with what is there."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

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
from training.checkpoints.manifest import CARD, MANIFEST, find_corruption, read_manifest
from training.checkpoints.public_names import ADAPTER_CONFIG, find_place, local_base, name_base

# httpx's or httpx2's, by the library's version: it also has the errors of connections
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]
_INVALID_URL: type[Exception] = sys.modules[_HTTP_ERROR.__module__.partition(".")[0]].InvalidURL
_KEPT = (".gitattributes",)
"""The hub's own; what it says of large files stays true."""
_NOTES_OF_LIBRARY = ".cache/huggingface/"
"""Of what it downloaded into a folder; the library itself never uploads them."""


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
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise ValueError(
            f"{folder}: no export, as a checkpoint is none: it has neither config.json nor "
            f"adapter_config.json; run: {command('training export RUN')}, and push what it writes"
        )
    if (broken := find_corruption(folder, hashes=True)) is not None:
        raise ValueError(f"{folder}: damaged: {broken}; export again, nothing was pushed")
    return folder


def push_export(
    folder: Path,
    *,
    to: str,
    base: str | None = None,
    private: bool = False,
    replace: bool = False,
    branch: str = "main",
) -> Pushed:
    """Make `to` on the hub hold this export and nothing else, in one commit.

    Large files are uploaded first and seen by nobody before the commit, so a push that fails leaves
    the repository as it was. HF_ENDPOINT names another hub than huggingface.co.

    Args:
        folder: from `find_export`.
        base: name on the hub of the weights that training began from: what is pushed names them so.
        replace: also of what is no export of ours.

    Raises:
        ValueError: when it was not pushed, and what was left behind.
    """
    for option, name in {"--to": to, "--base": base}.items():
        try:
            if name is not None:
                validate_repo_id(name)
        except HFValidationError as error:
            raise ValueError(f"{option} {name}: {error}") from None
    names = _files_of(folder)
    if (place := find_place(folder)) is not None:
        raise ValueError(f"{folder}: {place}; nothing was pushed")
    if base is None and (place := local_base(folder)) is not None:
        raise ValueError(
            f"{folder}: {ADAPTER_CONFIG} names the base {place}, a folder that nobody else has: "
            "add --base OWNER/NAME, where the hub has these weights, or push a whole model "
            "(export --merge); nothing was pushed"
        )
    with TemporaryDirectory() as scratch:
        if base is not None:
            names |= name_base(folder, base, to=Path(scratch))
        target = _Target(to, branch=branch, private=private, replace=replace)
        return _push(names, target, base=base, step=read_manifest(folder)["step"], source=folder)


@dataclass(frozen=True)
class _Target:
    """A repository on the hub, and what may be done to it."""

    to: str
    branch: str
    private: bool
    replace: bool


def _push(
    names: dict[str, Path], target: _Target, *, base: str | None, step: int, source: Path
) -> Pushed:
    api = HfApi(endpoint=_endpoint(), library_name="entrodrop")
    to, state = target.to, "nothing was pushed"
    try:
        if base is not None:
            _refuse_unknown_base(api, base)
        name = api.create_repo(to, private=target.private, exist_ok=True).repo_id
        if target.branch != "main":
            api.create_branch(name, branch=target.branch, exist_ok=True)
        state = f"no file of {name} was changed"
        there = api.model_info(name, revision=target.branch)
        if target.private and not there.private:
            raise ValueError(f"{name} exists and is public: make it private on the hub first")
        found = {each.rfilename for each in there.siblings or []} - {*_KEPT}
        if found and MANIFEST not in found and not target.replace:
            raise ValueError(
                f"{name} holds {', '.join(sorted(found)[:3])} and is not an export of ours; "
                "--replace makes this export all that it holds"
            )
        commit = api.create_commit(
            name,
            [
                *(CommitOperationAdd(path_in_repo=n, path_or_fileobj=p) for n, p in names.items()),
                *(CommitOperationDelete(path_in_repo=n) for n in sorted(found - names.keys())),
            ],
            commit_message=f"Step {step}",
            revision=target.branch,
            parent_commit=there.sha,  # two at a time: one of them fails, and nothing is mixed
        )
        state = f"{name} has the new commit {commit.oid}"
        pushed = api.model_info(name, revision=commit.oid, files_metadata=True)
        if wrong := _first_other(pushed.siblings or [], names):
            raise ValueError(f"{wrong} is not there as it is in {source}: push again")
    except LocalTokenNotFoundError:
        raise ValueError(f"{to}: {_LOG_IN}; {state}") from None
    except (_HTTP_ERROR, _INVALID_URL, OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{to}: {_reason(error)}; {state}") from None
    num_bytes = sum(path.stat().st_size for path in names.values())
    return Pushed(f"{api.endpoint}/{name}", commit.oid, len(names), num_bytes)


def _refuse_unknown_base(api: HfApi, base: str) -> None:
    try:
        api.model_info(base)
    except RepositoryNotFoundError:
        raise ValueError(f"--base {base}: the hub has no such model, or does not show it") from None


def _files_of(folder: Path) -> dict[str, Path]:
    """What `training export` wrote, by its names in the repository.

    Raises:
        ValueError: when there is more: nobody's notes are published, or left out, unawares.
    """
    written = {*read_manifest(folder)["files"], MANIFEST, CARD}
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    if links := [name for name, path in found.items() if path.is_symlink()]:
        raise ValueError(
            f"{folder}: {_some(links)}: a symbolic link, whose target would be published; move it "
            "out of the folder; nothing was pushed"
        )
    files = {
        name: path
        for name, path in found.items()
        if not path.is_dir() and not name.startswith(_NOTES_OF_LIBRARY)
    }
    if foreign := sorted(files.keys() - written):
        raise ValueError(
            f"{folder}: {_some(foreign)}: not of the export; move it out of the folder, and add it "
            "on the hub if it is to be public; nothing was pushed"
        )
    return files


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + rest


def _endpoint() -> str | None:
    """HF_ENDPOINT, if it is set and an address; no part of it is shown, as it may hold a secret.

    Raises:
        ValueError: when it is none.
    """
    address = os.environ.get("HF_ENDPOINT")
    if address is None:
        return None
    try:
        parts = urlsplit(address)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_address = is_address and parts.port != 0  # not a number: it raises
    except ValueError:
        is_address = False
    if "@" in address:  # they would also be sent in the place of the token
        raise ValueError(
            "HF_ENDPOINT holds a user or a password: name only the host, and set HF_TOKEN; "
            "nothing was pushed"
        )
    if not is_address or any(each.isspace() for each in address):
        raise ValueError(
            "HF_ENDPOINT is not the address of a hub, as https://huggingface.co is one: correct "
            "or unset it; nothing was pushed"
        )
    return address.rstrip("/")


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
