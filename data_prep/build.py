"""The build: inputs to documents, ids and shards, then a manifest once all are written."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.build_record import recorded_domains, shards_in_order, write_inputs
from data_prep.durable import (
    clear_staged,
    refuse_existing,
    staged_folder,
    write_durable,
)
from data_prep.encode import EncodeSettings
from data_prep.executor import WorkerPool, num_usable_cores, open_pool
from data_prep.journal import (
    Journal,
    differences,
    digest_of,
    plan_of_last_run,
    write_plan,
)
from data_prep.manifest import MANIFEST_NAME, Manifest, SplitRule, TokenizerRecord
from data_prep.reading.changes import refuse_changed
from data_prep.reading.documents import OnError, OnLoss
from data_prep.reading.fields import Fields
from data_prep.reading.folders import Globs
from data_prep.reading.sources import DomainInput, find_domains, split_name
from data_prep.reading.texts import iter_texts
from data_prep.record import files_sha256, printable_path, record_text
from data_prep.round_trip import Check
from data_prep.split import SPLIT_HASH
from data_prep.tokenizing.files import copy_tokenizer, describe_tokenizer_files
from data_prep.tokenizing.spelling import changes_of
from data_prep.tokenizing.tokenizer import Tokenizer, kind_of, load_once, prove_fast_path
from data_prep.write_corpus import write_corpus

if TYPE_CHECKING:
    from data_prep.tokenizing.training import Algorithm

_SMALL_BYTES = 2 << 20


@dataclass(frozen=True)
class BuildOptions:
    """The user's options; `check` rejects contradictory ones."""

    inputs: tuple[str | Path, ...]
    """`PATH` or `DOMAIN=PATH`."""
    out: Path
    tokenizer: str | None = None
    train_tokenizer: Algorithm | None = None
    train_vocab_size: int | None = None
    fields: Fields = field(default_factory=lambda: Fields(text="text"))
    fields_of: dict[str, Fields] = field(default_factory=dict)
    """Fields of individual domains, where they differ from `fields`."""
    globs: Globs = field(default_factory=Globs)
    val_frac: float = 0.01
    on_error: OnError = "fail"
    on_loss: OnLoss = "fail"
    """What to do where ids do not spell their text: fail, or count the characters."""
    checked: Check = "sample"
    """Which texts are compared with what their ids spell."""
    add_eos: bool = True
    split_on_eos: bool = False
    """A flat .npy of ids holds many documents, each ending in EOS."""
    num_workers: int | None = None  # None: one per core, or one for a small corpus
    shard_mib: float = 512
    overwrite: bool = False
    restart: bool = False
    fast_path: bool = True
    """Encode with gigatoken where it is provably equivalent."""

    def check(self) -> None:
        if (self.tokenizer is None) == (self.train_tokenizer is None):
            raise ValueError(
                "give either --tokenizer NAME_OR_PATH or --train-tokenizer bpe|unigram"
            )
        if (self.train_vocab_size is None) != (self.train_tokenizer is None):
            raise ValueError("--train-tokenizer and --vocab-size go together: give both or neither")
        for fields in (self.fields, *self.fields_of.values()):
            if fields.kind != "text" and self.train_tokenizer:
                raise ValueError(
                    f"--train-tokenizer needs text, but the input is {fields.kind}; pass the "
                    "tokenizer of the ids or of the chat template with --tokenizer"
                )
        if not 0 <= self.val_frac < 1:
            raise ValueError(f"--val-frac {self.val_frac}: must be at least 0 and below 1")
        if self.num_workers is not None and self.num_workers < 1:
            raise ValueError(f"--workers {self.num_workers}: must be at least 1")
        if self.shard_mib <= 0:
            raise ValueError(f"--shard-mib {self.shard_mib}: must be above 0")
        out = self.out.resolve()
        if printable_path(str(out)) != str(out):
            raise ValueError(f"--out {printable_path(str(out))}: its name must be valid UTF-8")
        for text in map(str, self.inputs):
            source = Path(split_name(text)[1]).resolve()
            if source == out or source in out.parents or out in source.parents:
                raise ValueError(f"--out {self.out}: overlaps with --input {text}; keep them apart")


def build(options: BuildOptions) -> Manifest:
    """Build a corpus folder. It appears under its name only when it is complete.

    A build that was killed or failed resumes when the same command is run again; the result is
    byte-identical to that of an uninterrupted build.
    """
    options.check()
    refuse_existing(options.out, marker=MANIFEST_NAME, overwrite=options.overwrite)
    domains = find_domains(
        options.inputs,
        globs=options.globs,
        fields_of=options.fields_of,
        default=options.fields,
    )
    with staged_folder(options.out, keeps_unfinished=True) as staging:
        _prepare(staging, domains=domains, options=options)
        manifest = _fill(staging, domains=domains, options=options)
        write_durable(staging / MANIFEST_NAME, record_text(manifest))
    return manifest


def _prepare(staging: Path, *, domains: Sequence[DomainInput], options: BuildOptions) -> None:
    """Put the tokenizer into the folder; keep a journal only if it is of the same build."""
    plan = _plan(domains, options=options)
    old = None if options.restart else plan_of_last_run(staging.parent)
    changed = differences(old, plan) if old else []
    if old and not changed and _same_tokenizer(staging, options=options):
        return
    if old:
        what = ", ".join(changed) or "the tokenizer"
        print(f"found an unfinished build, but {what} changed: restarting", file=sys.stderr)
    clear_staged(staging)
    if options.tokenizer is not None:
        copy_tokenizer(options.tokenizer, to=staging / "tokenizer")
        if any(domain.fields.kind == "chat" for domain in domains):
            _refuse_unusable_template(staging / "tokenizer", of=options.tokenizer)
    else:
        from data_prep.tokenizing.training import train_tokenizer

        assert options.train_tokenizer and options.train_vocab_size
        train_tokenizer(
            iter_texts(domains, on_error=options.on_error),
            algorithm=options.train_tokenizer,
            vocab_size=options.train_vocab_size,
            to=staging / "tokenizer",
        )
    write_plan(staging.parent, plan)


def _refuse_unusable_template(folder: Path, *, of: str) -> None:
    """Now, and by the name that was given: conversations may come after hours of texts."""
    from data_prep.tokenizing.chat import ChatEncoder  # only for conversations: loads transformers

    try:
        ChatEncoder(folder)
    except ValueError as error:
        what = str(error).removeprefix(f"{folder}: ")
        raise ValueError(f"--tokenizer {of}: {what}") from None


def _plan(domains: Sequence[DomainInput], *, options: BuildOptions) -> dict[str, Any]:
    """Everything that determines the corpus's bytes; what only affects speed is omitted."""
    files = (f"{domain.name} {file}" for domain in domains for file in domain.files)
    return {
        "format": 2,
        "inputs": digest_of(files),
        "fields": {domain.name: domain.fields.as_dict() for domain in domains},
        "tokenizer": options.tokenizer or [options.train_tokenizer, options.train_vocab_size],
        "val_frac": options.val_frac,
        "eos": options.add_eos,
        "split_on_eos": options.split_on_eos,
        "shard_mib": options.shard_mib,
        "check": options.checked,
    }


def _same_tokenizer(staging: Path, *, options: BuildOptions) -> bool:
    if options.tokenizer is None:
        return True
    check = staging.parent / "tokenizer.check"
    shutil.rmtree(check, ignore_errors=True)
    copy_tokenizer(options.tokenizer, to=check)
    files, kept = (describe_tokenizer_files(f) for f in (check, staging / "tokenizer"))
    shutil.rmtree(check)
    return files == kept


def _fill(staging: Path, *, domains: Sequence[DomainInput], options: BuildOptions) -> Manifest:
    """Write the shards next to the tokenizer and return the manifest."""
    folder = (staging / "tokenizer").resolve()
    record = _describe(options=options, folder=folder)
    is_small = options.num_workers is None and _is_small(domains)
    num_workers = options.num_workers or (1 if is_small else num_usable_cores())
    with open_pool(num_workers) as pool:
        load = partial(load_once, folder, record.sha256)
        tokenizer = load()
        pool.warm_up(load)
        fast = None
        if any(domain.fields.kind == "text" for domain in domains):
            is_wanted = options.fast_path and not is_small
            fast = _fast_path(
                tokenizer, into=staging.parent, is_wanted=is_wanted, check=options.checked
            )
        way = tokenizer.round_trip
        changes = changes_of(way.prepared, eats_blanks=way.eats_blanks)
        _announce(domains=domains, changes=changes)
        eos = tokenizer.special_ids.eos
        if options.split_on_eos:
            domains = _split_on(eos, domains=domains)
        settings = EncodeSettings(
            tokenizer_folder=folder,
            tokenizer_sha256=record.sha256,
            prefix=tokenizer.special_ids.document_prefix,
            suffix=(eos,) if options.add_eos and eos is not None else (),
            val_frac=options.val_frac,
            dtype=np.dtype("<u2" if tokenizer.vocab_size <= 65_536 else "<u4"),
            fast=fast,
            check=options.checked,
        )
        journal = _write_shards(
            staging, domains=domains, settings=settings, options=options, pool=pool
        )
    refuse_changed(domains)
    specials = tokenizer.special_ids.model_copy(update={"document_suffix": settings.suffix})
    return Manifest(
        schema_version=2,
        tokenizer=record.model_copy(update={"changes": changes}),
        vocab_size=tokenizer.vocab_size,
        token_dtype="uint16" if settings.dtype.itemsize == 2 else "uint32",
        special_ids=specials,
        split=SplitRule(val_frac=float(options.val_frac), hash=SPLIT_HASH),
        domains=recorded_domains(domains, journal=journal),
        inputs=write_inputs(staging, domains=domains),
        shards=shards_in_order(journal.shards, domains=domains),
    )


def _write_shards(
    staging: Path,
    *,
    domains: Sequence[DomainInput],
    settings: EncodeSettings,
    options: BuildOptions,
    pool: WorkerPool,
) -> Journal:
    journal = Journal(staging)
    num_done = sum(tally.num_documents for tally in journal.position.tallies.values())
    if num_done:
        print(f"resuming after {num_done:,} documents of the last run", file=sys.stderr)
    num_lost = sum(tally.num_chars_lost for tally in journal.position.tallies.values())
    if num_lost and options.on_loss == "fail":
        journal.close()
        raise ValueError(
            f"the unfinished build has counted {num_lost:,} lost characters; resume it with "
            "--on-loss count, or start over with --restart"
        )
    try:
        write_corpus(
            domains,
            settings=settings,
            on_error=options.on_error,
            on_loss=options.on_loss,
            max_shard_bytes=int(options.shard_mib * 2**20),
            pool=pool,
            journal=journal,
            into=staging,
        )
    finally:
        journal.close()
    return journal


def _is_small(domains: Sequence[DomainInput]) -> bool:
    """Whether all is encoded sooner than processes have started and a fast path is proven."""
    num_bytes = sum(domain.num_bytes for domain in domains)
    is_known = all(file.kind != "hub" for domain in domains for file in domain.files)
    return is_known and num_bytes < _SMALL_BYTES


def _fast_path(tokenizer: Tokenizer, *, into: Path, is_wanted: bool, check: Check) -> Path | None:
    """The proven fast path in a file that the workers load; they need not prove it again."""
    path, how = prove_fast_path(tokenizer) if is_wanted else (None, tokenizer.how)
    if path is None:
        print(f"encoding with {how}", file=sys.stderr)
        return None
    compared = "all texts are" if check == "all" else "a sample is"
    print(f"encoding with {how}; {compared} compared with it", file=sys.stderr)
    file = into / "fast_path.json"
    path.save(file)
    return file


def _announce(*, domains: Sequence[DomainInput], changes: Sequence[str]) -> None:
    if changes and any(domain.fields.kind != "ids" for domain in domains):
        print(
            f"note: this tokenizer changes texts before it encodes them: {', '.join(changes)}; "
            "the corpus holds what is left",
            file=sys.stderr,
        )


def _split_on(eos: int | None, *, domains: Sequence[DomainInput]) -> list[DomainInput]:
    if eos is None:
        raise ValueError("--split-on-eos: the tokenizer defines no EOS")
    return [
        replace(domain, fields=replace(domain.fields, split_after=eos))
        if domain.fields.kind == "ids"
        else domain
        for domain in domains
    ]


def _describe(*, options: BuildOptions, folder: Path) -> TokenizerRecord:
    files = describe_tokenizer_files(folder)
    source = options.tokenizer or f"{options.train_tokenizer} trained on this corpus"
    return TokenizerRecord(
        kind=kind_of(folder), source=source, sha256=files_sha256(files), files=files
    )
