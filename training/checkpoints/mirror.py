"""Copies of a run's checkpoints on an object store: sent in the background, fetched at a start."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from common.mirror import (
    complete_mirrors,
    delete_mirror,
    download_folder,
    mirrors_below,
    upload_folder,
)
from training.checkpoints.manifest import MANIFEST
from training.ranks.dist import Layout, together_slowly


def fetch_newest(url: str, root: Path, layout: Layout, *, may_resume: bool) -> None:
    """Bring back the newest complete checkpoint, if there is none in `root`; every rank calls it.

    Raises:
        ValueError: on every rank, when the store does not answer, also if nothing is missing, or
            when it holds checkpoints that may not be resumed from.
    """

    def fetch() -> None:
        names = [name for name in complete_mirrors(url) if name.startswith("step-")]
        if names and not may_resume:
            raise ValueError(
                f"checkpoint.mirror {url} holds a run already; choose another, or resume: auto"
            )
        if names and not any(root.glob("step-*")):
            print(f"fetching {names[-1]} from {url}", flush=True)
            root.mkdir(parents=True, exist_ok=True)
            download_folder(f"{url}/{names[-1]}", root / names[-1])

    together_slowly(lambda: fetch() if layout.is_main else None, layout)


class CheckpointMirror:
    """Sends rank 0's newest checkpoint from a thread; the steps do not wait for it."""

    def __init__(self, url: str, layout: Layout) -> None:
        self._url, self._layout = url, layout
        self._lock = threading.Lock()
        """Held to read or change the next two: a thread that ends takes no folder with it."""
        self._waiting: Path | None = None
        self._is_sending = False
        self._sent: list[Path] = []
        self._error: Exception | None = None
        self._thread = threading.Thread()

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
        is_new = upload_folder(folder, f"{self._url}/{folder.name}", last=MANIFEST)
        self._sent.append(folder)
        for old in [sent for sent in self._sent if not sent.exists()]:
            self._sent.remove(old)
            delete_mirror(f"{self._url}/{old.name}")
        if is_new:
            self._delete_later_than(folder)

    def _delete_later_than(self, folder: Path) -> None:
        """As in the run folder: they are from before the run went back, and would be fetched."""
        for name in mirrors_below(self._url):
            if name.startswith("step-") and name > folder.name:
                print(f"deleting {name} from {self._url}: the run went back", flush=True)
                delete_mirror(f"{self._url}/{name}")
