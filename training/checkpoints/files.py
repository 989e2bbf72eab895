"""A checkpoint's files: written durably with their checksums, read without running their code."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from common.checksum import FileRecord
from common.durable import write_all
from training.checkpoints.host_copy import HostCopy

ENGINE_TAG = "zero3"
"""Folder of DeepSpeed's own files within a checkpoint, whatever the stage."""
CACHE_FILE = "entropy_cache.f16"
_NEEDED_CLASSES = (LossScaler, ZeroStageEnum, fragment_address)
"""All that DeepSpeed's files contain besides tensors and plain Python values."""
_FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_PIECE_BYTES = 1 << 22


class CheckpointFiles(CheckpointEngine):
    """Replaces DeepSpeed's own checkpoint engine; one for each save or load.

    No method that saves raises: a rank that leaves DeepSpeed's save early would leave the others
    waiting in its barrier. Errors are kept, for all ranks to compare afterwards.
    """

    def __init__(
        self, folder: Path, *, loaded: Mapping[Path, Any] | None = None, defers: bool = False
    ) -> None:
        """Create it for one save or load.

        Args:
            folder: the checkpoint.
            loaded: contents by path, each returned once.
            defers: `save` keeps a copy of the file's bytes in memory, for `write_deferred`.
        """
        super().__init__()
        self.folder = folder
        self.records: dict[str, FileRecord] = {}
        """Of the files that this rank wrote, by name within the folder."""
        self.errors: list[str] = []
        self.is_disk_full = False
        self.sizes: dict[str, int] = {}
        """Bytes of all files to be written, including those that did not fit on the disk."""
        self._loaded = dict(loaded or {})
        self._defers = defers
        self._deferred: deque[tuple[str, Sequence[bytes | memoryview]]] = deque()

    def create(self, info: Any) -> None:
        """Nothing to prepare."""

    def commit(self, info: Any) -> bool:
        """Nothing to do: the checkpoint is complete when all ranks have compared their errors."""
        return True

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        with self.noting_errors(path):
            Path(path).mkdir(parents=True, exist_ok=exist_ok)

    def save(self, state_dict: Any, path: str | Path) -> None:
        """Write, flush to disk and record one file, or keep its bytes until later."""
        if not self._defers:
            self._write(str(path), lambda file: _torch_save(state_dict, file))
            return
        with self.noting_errors(path):
            copy = HostCopy(state_dict)
            memory = _MemorySink(copy)
            with io.BufferedWriter(memory, buffer_size=_PIECE_BYTES) as file:
                _torch_save(copy.state, file)
            self.sizes[str(path)] = sum(map(len, memory.pieces))
            self._deferred.append((str(path), memory.pieces))

    def write_deferred(self) -> None:
        """Write what was kept; without torch, so a thread may do it while training continues."""
        while self._deferred:
            path, pieces = self._deferred.popleft()
            self._write(path, partial(_write_pieces, pieces))

    def _write(self, path: str, fill: Callable[[IO[bytes]], object]) -> None:
        with self.noting_errors(path):
            sink = _HashingSink(path)
            try:
                with io.BufferedWriter(sink, buffer_size=_PIECE_BYTES) as file:
                    fill(cast(IO[bytes], file))
                    file.flush()
                    sink.make_durable()
            finally:
                self.sizes[path] = sink.num_bytes
            name = Path(path).relative_to(self.folder).as_posix()
            self.records[name] = FileRecord(sink.num_bytes, sink.sha256.hexdigest())

    def load(self, path: str, map_location: Any = None) -> Any:
        """The content of a file, or the one passed at construction."""
        return self._loaded.pop(Path(path)) if Path(path) in self._loaded else read_state(path)

    @contextmanager
    def noting_errors(self, path: str | Path) -> Iterator[None]:
        """Record errors raised inside, with the path, instead of raising them."""
        try:
            yield
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            if isinstance(error, OSError):
                reason = error.strerror or reason
                self.is_disk_full |= error.errno in (errno.ENOSPC, errno.EDQUOT)
            self.errors.append(f"{path}: {reason}")


def _torch_save(state: Any, file: Any) -> None:
    """Without the checksums of zip, a third of the time: SHA-256 of the whole file is kept."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, file)
    finally:
        torch.serialization.set_crc32_options(before)


def _write_pieces(pieces: Sequence[bytes | memoryview], file: IO[bytes]) -> None:
    file.writelines(pieces)


class _MemorySink(io.RawIOBase):
    """Keeps what is written in chunks, so that nothing is moved as it grows.

    What lies in `copy` already is kept as it is, so there is one copy of a GPU's tensors.
    """

    def __init__(self, copy: HostCopy) -> None:
        super().__init__()
        self.pieces: list[bytes | memoryview] = []
        self._copy = copy

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        view = memoryview(content)
        self.pieces.append(self._copy.own(view) or bytes(view))
        return len(self.pieces[-1])


class _HashingSink(io.RawIOBase):
    """Writes, counts and hashes. After a first failure it only counts, and raises at the end.

    So nothing is raised through torch's writer, which aborts or hides the error behind its own
    message, and the size that did not fit on the disk is known.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.num_bytes = 0
        self.sha256 = hashlib.sha256()
        self._error: OSError | None = None
        self._descriptor: int | None = None
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        except OSError as error:
            self._error = error

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        self.num_bytes += len(view)
        if self._error is None:
            assert self._descriptor is not None
            try:
                write_all(self._descriptor, view)
                self.sha256.update(view)
            except OSError as error:
                self._error = error
        return len(view)

    def make_durable(self) -> None:
        """Flush to disk; raises the first error."""
        if self._error is not None:
            raise self._error
        assert self._descriptor is not None
        os.fsync(self._descriptor)

    def close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)
        super().close()


def read_state(path: str | Path) -> Any:
    """Load a file of `torch.save` onto the CPU, provided that it contains nothing but data.

    Raises:
        ValueError: for a file that names other code, which is not run, or cannot be read.
    """
    with only_data(path):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise
        except Exception as error:  # damaged files fail in many parts of torch's reader
            raise ValueError(f"{path}: cannot be read: {type(error).__name__}: {error}") from None


@contextmanager
def only_data(source: str | Path) -> Iterator[None]:
    """Within it no `torch.load` runs code from a file, not even in DeepSpeed's own calls.

    Args:
        source: what is loaded, for the message.

    Raises:
        ValueError: when a file names other code than the few classes that DeepSpeed needs.
    """
    before = os.environ.get(_FORCED)
    os.environ[_FORCED] = "1"
    try:
        with torch.serialization.safe_globals(list(_NEEDED_CLASSES)):
            yield
    except pickle.UnpicklingError as error:
        message = str(error).replace("\n", " ")
        raise ValueError(f"{source}: refused, loading it would run code: {message}") from None
    finally:
        with suppress(KeyError):
            del os.environ[_FORCED]
        if before is not None:
            os.environ[_FORCED] = before


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` at the end, or is removed."""
    staging = out.with_name(f".staging-{out.name}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        yield staging
        shutil.rmtree(out, ignore_errors=True)
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
