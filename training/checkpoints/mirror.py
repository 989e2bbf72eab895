"""Copies of a run's checkpoints on an object store: sent in the background, fetched at a start."""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

from common.mirror import complete_mirrors, delete_mirror, download_folder, upload_folder
from training.checkpoints.manifest import MANIFEST
from training.checkpoints.mirror_owner import (
    Owner,
    key_of_copies,
    new_owner,
    refuse_another_run,
    refuse_another_start,
    steps_at,
    write_owner,
)
from training.config.recipe import Recipe
from training.ranks.dist import Layout, broadcast_from_rank0, together_slowly


def fetch_newest(
    recipe: Recipe, layout: Layout, *, identity: dict[str, Any], accepted: Collection[str]
) -> str | None:
    """Bring back the newest complete checkpoint, if the run folder has none; every rank calls it.

    Returns:
        The key of the run that the copies are of; None when there are none.

    Raises:
        ValueError: on every rank, when the store does not answer, also if nothing is missing, or
            when it holds checkpoints that are another run's, or may not be resumed from.
    """
    url, root = recipe.checkpoint.mirror, Path(recipe.run_dir) / "checkpoints"

    def fetch() -> str | None:
        key = key_of_copies(url, root, identity=identity, accepted=accepted)
        names = [name for name in complete_mirrors(url) if name.startswith("step-")]
        if names and recipe.resume == "never":
            raise ValueError(
                f"checkpoint.mirror {url} holds a run already; choose another, or resume: auto"
            )
        if names and not any(root.glob("step-*")):
            print(f"fetching {names[-1]} from {url}", flush=True)
            root.mkdir(parents=True, exist_ok=True)
            download_folder(f"{url}/{names[-1]}", root / names[-1])
        return key

    return broadcast_from_rank0(
        together_slowly(lambda: fetch() if layout.is_main else None, layout)
    )


class CheckpointMirror:
    """Sends rank 0's newest checkpoint from a thread; the steps do not wait for it."""

    def __init__(self, url: str, layout: Layout) -> None:
        self._url, self._layout = url, layout
        self._lock = threading.Lock()
        """Held to read or change the next two: a thread that ends takes no folder with it."""
        self._waiting: Path | None = None
        self._is_sending = False
        self._sent: list[Path] = []
        self._owner: Owner | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread()

    def begin(self, run_key: str | None, run_dir: Path, identity: dict[str, Any]) -> None:
        """Become the one start that sends to this URL; every rank calls it.

        Raises:
            ValueError: on every rank, when copies of another run are there.
        """
        if self._url:
            assert run_key
            owner = new_owner(run_key, run_dir, identity)
            together_slowly(
                lambda: self._claim(owner) if self._layout.is_main else None, self._layout
            )

    def add(self, folder: Path) -> None:
        """Send it after the one that is being sent; of several that wait, only the newest."""
        if not self._url or not self._layout.is_main:
            return
        with self._lock:
            self._waiting = folder
            if not self._is_sending:
                # daemon: a process that ends early leaves no complete copy
                self._thread = threading.Thread(target=self._send_all, name="mirror", daemon=True)
                self._thread.start()
                self._is_sending = True

    def finish(self) -> None:
        """Wait for what is still to be sent; every rank calls it.

        Raises:
            ValueError: on every rank, when the last one has failed.
        """
        if self._url:
            together_slowly(self._join, self._layout)

    def _claim(self, owner: Owner) -> None:
        refuse_another_run(self._url, owner.run_key)
        write_owner(self._url, owner)
        self._owner = owner

    def _join(self) -> None:
        if self._thread.is_alive():
            self._thread.join()
        self._send_all()  # what still waits, should the thread have died
        if self._error is not None:
            raise ValueError(
                f"checkpoint.mirror: {self._error}. The checkpoint is in the run folder; start the "
                "run again to send it"
            )

    def _next(self) -> Path | None:
        with self._lock:
            folder, self._waiting = self._waiting, None
            self._is_sending = folder is not None
            return folder

    def _send_all(self) -> None:
        while (folder := self._next()) is not None:
            try:
                self._send(folder)
                self._error = None
            except Exception as error:  # whatever it is, training goes on
                if folder.exists():  # else the run has deleted it for a newer one
                    self._error = error
                    print(
                        f"checkpoint.mirror: {error}. Training goes on, and the next checkpoint "
                        "will be sent",
                        file=sys.stderr,
                        flush=True,
                    )

    def _send(self, folder: Path) -> None:
        """Send a checkpoint, then delete those that it makes obsolete."""
        assert self._owner
        refuse_another_start(self._url, self._owner)
        is_new = upload_folder(folder, f"{self._url}/{folder.name}", last=MANIFEST)
        self._sent.append(folder)
        for old in [sent for sent in self._sent if not sent.exists()]:
            self._sent.remove(old)
            delete_mirror(f"{self._url}/{old.name}")
        if is_new:
            self._delete_later_than(folder)

    def _delete_later_than(self, folder: Path) -> None:
        """As in the run folder: they are from before the run went back, and would be fetched."""
        for name in steps_at(self._url):
            if name > folder.name:
                print(f"deleting {name} from {self._url}: the run went back", flush=True)
                delete_mirror(f"{self._url}/{name}")
