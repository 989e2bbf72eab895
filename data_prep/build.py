"""The build: inputs to documents, ids and shards, then a manifest once all are written."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.build_options import BuildOptions
from data_prep.build_record import recorded_domains, shards_in_order, write_inputs
from data_prep.build_tokenizer import (
    describe_tokenizer,
    has_same_tokenizer,
    put_tokenizer,
    write_fast_path,
)
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
from data_prep.manifest import MANIFEST_NAME, Manifest, SplitRule
from data_prep.reading.changes import refuse_changed
from data_prep.reading.sources import DomainInput, find_domains
from data_prep.record import record_text
from data_prep.split import SPLIT_HASH
from data_prep.tokenizing.files import find_tokenizer
from data_prep.tokenizing.spelling import changes_of
from data_prep.tokenizing.tokenizer import load_once
from data_prep.write_corpus import write_corpus

_SMALL_BYTES = 2 << 20


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
    if options.tokenizer is not None:
        find_tokenizer(options.tokenizer)  # refused before anything is made
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
    if old and not changed and has_same_tokenizer(staging, options=options):
        return
    if old:
        what = ", ".join(changed) or "the tokenizer"
        print(f"found an unfinished build, but {what} changed: restarting", file=sys.stderr)
    clear_staged(staging)
    try:
        put_tokenizer(staging / "tokenizer", domains=domains, options=options)
    except BaseException:
        clear_staged(staging)  # without a plan nothing of it would be resumed
        raise
    write_plan(staging.parent, plan)


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


def _fill(staging: Path, *, domains: Sequence[DomainInput], options: BuildOptions) -> Manifest:
    """Write the shards next to the tokenizer and return the manifest."""
    folder = (staging / "tokenizer").resolve()
    record = describe_tokenizer(options=options, folder=folder)
    is_small = options.num_workers is None and _is_small(domains)
    num_workers = options.num_workers or (1 if is_small else num_usable_cores())
    with open_pool(num_workers) as pool:
        load = partial(load_once, folder, record.sha256)
        tokenizer = load()
        pool.warm_up(load)
        fast = None
        if any(domain.fields.kind == "text" for domain in domains):
            is_wanted = options.fast_path and not is_small
            fast = write_fast_path(
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
        domains=recorded_domains(domains, journal=journal, val_frac=options.val_frac),
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
