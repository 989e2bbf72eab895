"""The build verb: files to documents to ids to shards, and a manifest when all of it is there."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep.durable import refuse_existing, staged_folder, write_durable
from data_prep.encode import SPLIT_HASH, EncodeSettings
from data_prep.executor import num_usable_cores
from data_prep.manifest import (
    MANIFEST_NAME,
    Manifest,
    Source,
    SplitRule,
    TokenizerRecord,
    files_sha256,
)
from data_prep.progress import bytes_bar
from data_prep.reading.documents import Intake, OnError, ReadOptions
from data_prep.reading.readers import read_documents
from data_prep.reading.sources import Globs, InputFile, find_files
from data_prep.tokenizing.files import copy_tokenizer, describe_tokenizer_files
from data_prep.tokenizing.tokenizer import Tokenizer, load_tokenizer
from data_prep.tokenizing.training import Algorithm, train_tokenizer
from data_prep.write_corpus import write_corpus


@dataclass(frozen=True)
class BuildOptions:
    """What the user asked for; `check` refuses what cannot be meant."""

    inputs: tuple[Path, ...]
    out: Path
    tokenizer: str | None = None
    train_tokenizer: Algorithm | None = None
    train_vocab_size: int | None = None
    text_key: str = "text"
    ids_key: str | None = None
    globs: Globs = field(default_factory=Globs)
    val_frac: float = 0.01
    on_error: OnError = "fail"
    add_eos: bool = True
    num_workers: int | None = None  # None: one per core
    shard_mib: float = 512
    overwrite: bool = False

    def check(self) -> None:
        if (self.tokenizer is None) == (self.train_tokenizer is None):
            raise ValueError(
                "give one of --tokenizer NAME_OR_PATH and --train-tokenizer bpe|unigram"
            )
        if (self.train_vocab_size is None) != (self.train_tokenizer is None):
            raise ValueError("--train-tokenizer and --vocab-size go together: give both or neither")
        if self.ids_key and self.train_tokenizer:
            raise ValueError(f"--ids-key {self.ids_key}: name the ids' own tokenizer: --tokenizer")
        if not 0 <= self.val_frac < 1:
            raise ValueError(f"--val-frac {self.val_frac}: must be at least 0 and below 1")
        if self.num_workers is not None and self.num_workers < 1:
            raise ValueError(f"--workers {self.num_workers}: must be at least 1")
        if self.shard_mib <= 0:
            raise ValueError(f"--shard-mib {self.shard_mib}: must be above 0")
        out = self.out.resolve()
        for path in self.inputs:
            source = path.resolve()
            if source == out or source in out.parents or out in source.parents:
                raise ValueError(f"--out {self.out}: overlaps with --input {path}; keep them apart")


def build(options: BuildOptions) -> Manifest:
    """Build a corpus folder. It appears under its name only when it is whole."""
    options.check()
    refuse_existing(options.out, marker=MANIFEST_NAME, overwrite=options.overwrite)
    files, sources = find_files(options.inputs, globs=options.globs)
    with staged_folder(options.out) as staging:
        if options.tokenizer is not None:
            copy_tokenizer(options.tokenizer, to=staging / "tokenizer")
        else:
            _train(files, options=options, to=staging / "tokenizer")
        manifest = _fill(staging, files=files, sources=sources, options=options)
        content = manifest.model_dump_json(indent=2) + "\n"
        write_durable(staging / MANIFEST_NAME, content.encode())
    return manifest


def _train(files: Sequence[InputFile], *, options: BuildOptions, to: Path) -> None:
    assert options.train_tokenizer and options.train_vocab_size

    def texts() -> Iterator[str]:
        # A pass of its own over the files; the ledger counts the second one.
        intake = Intake()
        read = ReadOptions(text_key=options.text_key, on_error=options.on_error)
        with bytes_bar(files, what="read for the tokenizer") as bar:
            for document in read_documents(files, options=read, intake=intake):
                yield str(document.content)
                bar.update(intake.num_bytes_read - bar.n)
        print(f"training {options.train_tokenizer} on what was read ...", file=sys.stderr)

    train_tokenizer(
        texts(), algorithm=options.train_tokenizer, vocab_size=options.train_vocab_size, to=to
    )


def _fill(
    staging: Path,
    *,
    files: Sequence[InputFile],
    sources: Sequence[Source],
    options: BuildOptions,
) -> Manifest:
    """Write the shards beside the tokenizer and describe the whole."""
    tokenizer = load_tokenizer(staging / "tokenizer")
    record = _describe(tokenizer, options=options, folder=staging / "tokenizer")
    eos = tokenizer.special_ids.eos
    suffix = (eos,) if options.add_eos and eos is not None else ()
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 65_536 else "<u4")
    written = write_corpus(
        files,
        read=ReadOptions(
            text_key=options.text_key,
            ids_key=options.ids_key,
            vocab_size=tokenizer.vocab_size,
            on_error=options.on_error,
        ),
        encode=EncodeSettings(
            tokenizer_folder=(staging / "tokenizer").resolve(),
            tokenizer_sha256=record.sha256,
            prefix=tokenizer.special_ids.document_prefix,
            suffix=suffix,
            val_frac=options.val_frac,
            dtype=dtype,
        ),
        num_workers=options.num_workers or num_usable_cores(),
        max_shard_bytes=int(options.shard_mib * 2**20),
        into=staging,
    )
    if not written.ledger.by_split["train"].num_documents:
        raise ValueError(
            f"no document is left to train on: {written.ledger.num_documents_in} read, "
            f"{written.ledger.num_documents_empty} empty, {written.ledger.num_documents_bad} bad, "
            f"{written.ledger.num_documents_kept} held out"
        )
    return Manifest(
        schema_version=1,
        tokenizer=record,
        vocab_size=tokenizer.vocab_size,
        token_dtype="uint16" if dtype.itemsize == 2 else "uint32",
        special_ids=tokenizer.special_ids.model_copy(update={"document_suffix": suffix}),
        sources=tuple(sources),
        split=SplitRule(val_frac=float(options.val_frac), hash=SPLIT_HASH),
        shards=written.shards,
        ledger=written.ledger,
    )


def _describe(tokenizer: Tokenizer, *, options: BuildOptions, folder: Path) -> TokenizerRecord:
    files = describe_tokenizer_files(folder)
    source = options.tokenizer or f"{options.train_tokenizer} trained on this corpus"
    return TokenizerRecord(
        kind=tokenizer.kind, source=source, sha256=files_sha256(files), files=files
    )
