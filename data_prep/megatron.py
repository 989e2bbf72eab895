"""Exports a corpus as Megatron's .bin and .idx, copied in chunks, published atomically."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np

from common.commands import command
from common.durable import fsync_path
from common.locks import try_lock
from common.progress import progress_bar
from data_prep.ledger import SPLITS, Split
from data_prep.reading.megatron_index import DTYPE_OF_CODE, INDEX_HEADER, INDEX_MAGIC
from data_prep.shards import Corpus, MappedShard, open_corpus

_PIECE_BYTES = 8 << 20
_ROWS_AT_ONCE = 1 << 19
_MAX_SEQUENCE_TOKENS = 2**31 - 1  # lengths are int32


@dataclass(frozen=True)
class Export:
    """One pair of files written, `prefix`.bin and `prefix`.idx."""

    prefix: Path
    split: Split
    num_documents: int
    num_tokens: int
    num_bytes: int
    leaves_out_masks: bool
    """The corpus masks tokens out of the loss, which the format cannot store."""


@dataclass(frozen=True)
class _Plan:
    """What goes into one pair."""

    prefix: Path
    split: Split
    shards: tuple[MappedShard, ...]
    dtype: np.dtype
    vocab_size: int

    @property
    def num_documents(self) -> int:
        return sum(opened.shard.num_documents for opened in self.shards)

    @property
    def num_tokens(self) -> int:
        return sum(opened.shard.num_tokens for opened in self.shards)

    @property
    def bin_bytes(self) -> int:
        return self.num_tokens * self.dtype.itemsize

    @property
    def idx_bytes(self) -> int:
        return INDEX_HEADER.size + 20 * self.num_documents + 8


def export_megatron(
    folder: Path,
    *,
    prefix: Path,
    split: Split | Literal["all"] = "all",
    domains: Sequence[str] = (),
    overwrite: bool = False,
) -> list[Export]:
    """Write splits of a corpus as pairs that Megatron's `IndexedDataset` opens.

    With `all`, one pair per split that has documents: PREFIX-train and PREFIX-val. Each document
    is one sequence, in corpus order. Memory does not grow with the corpus.
    """
    corpus = open_corpus(folder)
    plans = _plans(corpus, prefix=prefix, split=split, domains=domains)
    paths = [Path(f"{plan.prefix}{s}") for plan in plans for s in (".bin", ".idx")]
    for path in paths:
        _refuse(path, corpus=corpus, overwrite=overwrite)
    num_bytes = sum(plan.bin_bytes + plan.idx_bytes for plan in plans)
    _check_free(prefix.absolute().parent, num_bytes=num_bytes)
    # All pairs are complete on disk before the first appears under its name.
    with ExitStack() as stack, progress_bar(num_bytes, what="export", unit="B") as bar:
        files = [stack.enter_context(_aside(path)) for path in paths]
        for number, plan in enumerate(plans):
            _write_tokens(files[2 * number], plan=plan, update=bar.update)
            _write_index(files[2 * number + 1], plan=plan, update=bar.update)
        for file in files:
            file.flush()
            os.fsync(file.fileno())
        _publish(files, paths=paths)
    return [
        Export(
            prefix=plan.prefix,
            split=plan.split,
            num_documents=plan.num_documents,
            num_tokens=plan.num_tokens,
            num_bytes=plan.bin_bytes + plan.idx_bytes,
            leaves_out_masks=any(opened.mask is not None for opened in plan.shards),
        )
        for plan in plans
    ]


def _plans(
    corpus: Corpus, *, prefix: Path, split: Split | Literal["all"], domains: Sequence[str]
) -> list[_Plan]:
    if prefix.suffix in (".bin", ".idx"):
        raise ValueError(
            f"--out {prefix}: give it without {prefix.suffix}; both suffixes are added"
        )
    unknown = [name for name in domains if name not in corpus.domains]
    if unknown:
        known = ", ".join(corpus.domains)
        raise ValueError(f"--domain {unknown[0]}: no such domain; the corpus has {known}")
    if corpus.vocab_size > 2**31:
        raise ValueError(f"vocabulary of {corpus.vocab_size}: Megatron's ids are int32 at most")
    dtype = corpus.manifest.dtype if corpus.manifest.dtype.itemsize == 2 else np.dtype("<i4")
    plans = []
    for name in SPLITS if split == "all" else (split,):
        shards = [s for s in corpus.open_shards(name) if not domains or s.shard.domain in domains]
        own = Path(f"{prefix}-{name}") if split == "all" else prefix
        plan = _Plan(own, name, tuple(shards), dtype=dtype, vocab_size=corpus.vocab_size)
        if plan.num_tokens:  # Megatron cannot open an empty .bin
            plans.append(plan)
    if not plans:
        raise ValueError(f"--split {split}: it has no documents; choose another split or domain")
    return plans


def _refuse(path: Path, *, corpus: Corpus, overwrite: bool) -> None:
    if path.resolve().parent == corpus.folder.resolve():
        raise ValueError(f"--out {path}: is inside the corpus; choose a path outside it")
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        raise ValueError(f"{path}: already exists; choose another --out or add --overwrite")
    # Never replace a file that is not Megatron's, whatever the flags say.
    index = path.with_name(path.name[: -len(".bin")] + ".idx")
    if not index.is_file() or _first_bytes(index, count=len(INDEX_MAGIC)) != INDEX_MAGIC:
        raise ValueError(f"{path}: exists and is not a Megatron file; choose another --out")


def _first_bytes(path: Path, *, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


def _check_free(folder: Path, *, num_bytes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise ValueError(
            f"{folder}: needs {num_bytes / 2**30:.2f} GiB, has {free / 2**30:.2f} GiB free"
        )


def _is_named(file: IO[bytes], path: Path) -> bool:
    try:
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


@contextmanager
def _aside(path: Path) -> Iterator[IO[bytes]]:
    """An empty file next to `path`, locked against another export and always removed."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("ab") as file:
        # The previous holder of the lock may have published this very file meanwhile.
        if not (try_lock(file.fileno()) and _is_named(file, temporary)):
            raise ValueError(f"{path}: another process is writing it; wait until it finishes")
        try:
            file.truncate(0)
            yield file
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _publish(files: Sequence[IO[bytes]], *, paths: Sequence[Path]) -> None:
    """Publish the files. A pair counts only with its .idx: removed first, published last."""
    for path in paths:
        if path.suffix == ".idx":
            path.unlink(missing_ok=True)
    pairs = sorted(zip(paths, files, strict=True), key=lambda pair: pair[0].suffix)
    for path, file in pairs:
        Path(file.name).replace(path)
    for folder in {path.parent for path in paths}:
        fsync_path(folder)


def _write_tokens(file: IO[bytes], *, plan: _Plan, update: Callable[[int], object]) -> None:
    step = _PIECE_BYTES // plan.dtype.itemsize
    for opened in plan.shards:
        for begin in range(0, len(opened.tokens), step):
            ids = opened.tokens[begin : begin + step]
            # uint32 to int32 would silently turn a damaged id negative.
            if int(ids.max()) >= plan.vocab_size:
                raise ValueError(
                    f"{opened.shard.tokens.name}: damaged: id {ids.max()}, expected ids below "
                    f"{plan.vocab_size}; run `{command('data_prep verify --deep')}`"
                )
            update(file.write(ids.astype(plan.dtype, copy=False).data))


def _write_index(file: IO[bytes], *, plan: _Plan, update: Callable[[int], object]) -> None:
    """Header, lengths, pointers, documents: three passes, since each table is contiguous."""
    code = {name: code for code, name in DTYPE_OF_CODE.items()}[plan.dtype.str.replace("|", "")]
    count = plan.num_documents
    update(file.write(INDEX_HEADER.pack(INDEX_MAGIC, 1, code, count, count + 1)))
    for bounds in _bounds(plan):
        update(file.write(np.diff(bounds).astype("<i4").data))
    for bounds in _bounds(plan):
        update(file.write((bounds[:-1] * plan.dtype.itemsize).astype("<i8").data))
    for begin in range(0, count + 1, _ROWS_AT_ONCE):
        end = min(begin + _ROWS_AT_ONCE, count + 1)
        update(file.write(np.arange(begin, end, dtype="<i8").data))


def _bounds(plan: _Plan) -> Iterator[np.ndarray]:
    """Starts of documents in the .bin and the end of each chunk's last one, in tokens."""
    before = 0
    for opened in plan.shards:
        offsets, name = opened.offsets, opened.shard.docs.name
        if (int(offsets[0]), int(offsets[-1])) != (0, len(opened.tokens)):
            raise ValueError(f"{name}: damaged: expected bounds from 0 to {len(opened.tokens)}")
        for begin in range(0, opened.shard.num_documents, _ROWS_AT_ONCE):
            piece = offsets[begin : begin + _ROWS_AT_ONCE + 1]
            lengths = np.diff(piece)
            if (lengths < 0).any():
                raise ValueError(f"{name}: damaged: expected non-decreasing bounds")
            if lengths.max() > _MAX_SEQUENCE_TOKENS:
                raise ValueError(
                    f"{name}: a document of {lengths.max()} tokens; Megatron's sequences have at "
                    f"most {_MAX_SEQUENCE_TOKENS}"
                )
            yield before + piece
        before += opened.shard.num_tokens
